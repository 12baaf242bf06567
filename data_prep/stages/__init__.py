"""Beam stages of curation: they move RecordBatches through the functions of steps.py.

Every element is a RecordBatch, or a (partition, RecordBatch) pair around a
shuffle. Beside its main output a stage emits FLOW rows ("flow"). A stage that
writes a part emits the same rows whether it wrote it now or found it finished.
"""
