"""Makes finished files of a workdir again where a stage finds them damaged or missing.

They have checksums, so a changed bit is noticed when it is read.
"""

import os
import re
from collections.abc import Callable, Sequence

from absl import logging

from data_prep.sinks import array_record as sink
from data_prep.stages import parts, planning
from metaclip_jax import files
from metaclip_jax.data import records

# After the workdir: what a stage writes once, and others read.
_FILE = (
    r"/(matched|matches|downloads|images)/"
    r"(part-\d+-of-\d+[\w.]*\.(?:parquet|images)|[a-z_]+\.parquet)\b"
)


def repairing(run: planning.Run, work: Callable[[], None]) -> None:
    """Calls `work`, and again where it failed at damaged files in the workdir.

    It continues after the files that are there, so it makes again what is removed. A
    file is made again once; if it is damaged again, the error is raised.
    """
    known: set[str] = set()
    while True:
        try:
            return work()
        except Exception as error:
            found = set() if files.is_full_disk(error) else find(error, run) - known
            if not found:
                raise
        for path in sorted(found):
            logging.warning("%s is damaged or missing: it is made again", path)
        remove(run, sorted(found))
        known |= found


def find(error: Exception, run: planning.Run) -> set[str]:
    """Returns the files in a workdir that an error names and that cannot be read.

    An error of a worker or an engine may quote others, so its text is what counts.
    """
    root = os.fspath(files.path(run.workdir))
    named = re.compile(re.escape(root.removeprefix("gs://")) + _FILE)
    text = "\n".join([str(error), *getattr(error, "__notes__", [])])
    places = {found.groups() for found in named.finditer(text)}
    sources = {os.fspath(files.path(path)) for path in run.source_files}
    return {
        f"{root}/{folder}/{name}"
        for folder, name in places
        if parts.is_damaged(f"{root}/{folder}", name)
    } - sources


def reopen(run: planning.Run) -> None:
    """Reopens the images stage and the dataset, so that downloads may change.

    A run that is killed meanwhile continues with or without --retry_failed: shards are
    removed before any download changes, and parts of downloads change atomically.

    Raises ValueError if one of the folders belongs to another run.
    """
    n = run.config.partitions
    files.reopen(run.output, run.inputs)
    for i in range(n):
        for table in ("urls", "scores", "faces"):
            path = files.path(run.output) / sink.table_name(table, i, n)
            path.unlink(missing_ok=True)
        shard = records.shard_name(run.config.name, i, n)
        sink.remove_shard(os.path.join(run.output, shard))
    files.reopen(os.path.join(run.workdir, "images"), run.inputs)


def remove(run: planning.Run, paths: Sequence[str]) -> None:
    """Removes damaged files of a workdir, and reopens the stages that make them.

    The folders are reopened first: a run that is killed meanwhile finds the rest.
    """
    folders = {os.path.basename(os.path.dirname(path)) for path in paths}
    if "downloads" in folders:  # another download may give other images
        reopen(run)
    inputs = {
        "matched": run.source_inputs,
        "matches": run.match_inputs,
        "images": run.inputs,
    }
    for name in folders & inputs.keys():
        files.reopen(os.path.join(run.workdir, name), inputs[name])
    for path in paths:
        parts.remove(*os.path.split(path))
