"""Weights in and out: one table per foreign format, total in both directions."""
