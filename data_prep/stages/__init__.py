"""Beam stages of curation, which apply the functions of steps.py to RecordBatches.

A stage is a function of one element, or a method of a frozen object with what it needs
besides. A pipeline starts with names and numbers; the other elements are RecordBatches,
or a key and a RecordBatch around a shuffle. A stage also outputs FLOW rows ("flow"). A
stage that writes a part outputs the same rows whether it wrote the part now or found it
finished.
"""

from data_prep.stages import arrow_coder  # noqa: F401  registers the coder
