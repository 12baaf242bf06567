"""Reads images whose bytes are in the source itself.

The source's reader gives each image a reference to its bytes. No text of a page or a
table can become a reference: sources of pages make none, and their runs follow none.
"""

from collections.abc import Callable, Iterator, Sequence

from data_prep.sources.spec import Spec

Bodies = Iterator[tuple[str, bytes]]  # status, bytes where it is "ok"
# Reads images of one file by their positions in it, in that order.
Reader = Callable[[str, Sequence[str], Spec], Bodies]

OK = "ok"
_SEPARATOR = "@"


def reference(path: str, position: str = "") -> str:
    """Returns a reference to an image: a file, and a position in it."""
    return f"{position}{_SEPARATOR}{path}"


def fetch(
    references: Sequence[str], read: Reader, spec: Spec
) -> Iterator[tuple[int, str, bytes]]:
    """Reads images file by file and yields one result for each.

    Args:
      references: what `reference` returned.
      read: called once a file.
      spec: the source's; an image of more than max_image_bytes is too_large.

    Yields:
      (position in `references`, status, bytes where the status is "ok"). Reasons of the
      others: missing_file, damaged_file, too_large.

    Raises OSError where the storage fails.
    """
    files: dict[str, list[tuple[str, int]]] = {}
    for index, one in enumerate(references):
        position, _, path = one.partition(_SEPARATOR)
        files.setdefault(path, []).append((position, index))
    for path in sorted(files):
        wanted = sorted(files[path], key=lambda one: (len(one[0]), one))
        bodies = read(path, [position for position, _ in wanted], spec)
        for _, index in wanted:
            try:
                status, body = next(bodies)
            except (FileNotFoundError, StopIteration):
                status, body = "missing_file", b""
            yield index, status, body
