"""Substring matching of texts against metadata, by the rules of MetaCLIP 1 and 2."""

from data_prep.matching.automaton import Reference
from data_prep.matching.matcher import EveryText, Matcher

__all__ = ["EveryText", "Matcher", "Reference"]
