"""Importing and exporting weights: one table of rules per foreign format."""
