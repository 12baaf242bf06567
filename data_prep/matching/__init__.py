"""Substring matching of texts against metadata, by the rules of MetaCLIP 1 and 2."""

from data_prep.matching.matcher import EveryText, Matcher, Reference

__all__ = ["EveryText", "Matcher", "Reference"]
