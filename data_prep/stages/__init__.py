"""Beam stages of curation, which apply the functions of steps.py to RecordBatches.

Every element is a RecordBatch, or a (partition, RecordBatch) pair around a
shuffle. A stage also outputs FLOW rows ("flow"). A stage that writes a part outputs the
same rows whether it wrote the part now or found it finished.
"""
