"""What a kind of source is, its options, and the counts of what was read from it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from data_prep import drops, schema
from data_prep.sources import texts
from data_prep.sources.texts import Losses
from metaclip_jax import files, patterns

_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Spec:
    """The options of all sources, from the keys of the same names in config.py."""

    kind: str
    url_column: str
    image_column: str
    text_columns: tuple[str, ...]
    caption_columns: tuple[str, ...]  # of a folder's file of captions
    language_column: str
    page_column: str
    score_columns: tuple[str, ...]
    page_texts: tuple[str, ...]
    prefer_larger: bool
    header: tuple[str, ...]
    max_page_bytes: int
    max_tree_bytes: int
    max_texts_per_page: int
    max_text_chars: int
    max_url_chars: int
    identifier: str  # of languages
    max_image_bytes: int
    user_agent: str  # the header that web servers get
    extra: tuple[str, ...] = ()  # further columns to read
    optional: frozenset[str] = frozenset()  # columns that a file may lack
    root: str = ""  # the folder of all files, with its slash

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read, each once."""
        names = (
            self.url_column,
            *self.text_columns,
            self.language_column,
            self.page_column,
            *self.score_columns,
            *self.extra,
        )
        return tuple(dict.fromkeys(filter(None, names)))

    def name_of(self, path: str) -> str:
        """Returns the URL-like name of a file, used in place of an image URL.

        It does not depend on the location of the source's folder.
        """
        return f"source:{path.removeprefix(self.root)}"


@dataclass
class Reading:
    """Counts of one piece of a source: what was read, and what was lost by reason.

    Items are pages, or whatever else holds texts in that source.
    """

    items: int = 0
    texts: int = 0
    lost_files: Counter[str] = field(default_factory=Counter)
    lost_items: Losses = field(default_factory=Losses)  # shown by their addresses
    lost_texts: Losses = field(default_factory=Losses)
    addresses: Counter[str] = field(default_factory=Counter)  # of images, how chosen

    def flow(self, item: str) -> Iterator[pa.RecordBatch]:
        """Yields the FLOW rows of a file that was read; `item` is what it holds."""
        broken, missing = self.lost_files.total(), self.lost_items.total()
        yield drops.flow(
            "read", unit="files", entered=1, left=1 - broken, drops=self.lost_files
        )
        yield drops.flow(
            "read",
            unit=item,
            entered=self.items + missing,
            left=self.items,
            drops=self.lost_items,
        )
        if self.addresses:
            yield drops.flow(
                "parse",
                unit="addresses",
                entered=self.addresses.total(),
                left=self.addresses[texts.AS_WRITTEN],
                drops={texts.LARGER: self.addresses[texts.LARGER]},
            )
        yield drops.flow(
            "parse",
            entered=self.texts + self.lost_texts.total(),
            left=self.texts,
            drops=self.lost_texts,
        )


Bodies = Iterator[tuple[str, bytes]]  # status, bytes where it is pairs.OK
# Reads images of one file by their positions in it, in that order.
ImageReader = Callable[[str, Sequence[str], Spec], Bodies]


@dataclass(frozen=True)
class Kind:
    """A row of kinds.KINDS."""

    # Yields the CANDIDATES of one file and counts what it read.
    read: Callable[[str, Spec, Reading], Iterator[pa.RecordBatch]]
    item: str  # what holds texts, for the funnel
    formats: tuple[str, ...]  # that it reads, in the words of `formats.of`; (): any
    glob: str  # of its files in a folder; "": it reads folders
    texts: tuple[str, ...] = ()  # columns of texts, where config names none
    # Reads the images that the source holds. None: they are downloaded.
    images: ImageReader | None = None
    # Raises ValueError where the keys of `source` do not fit a file.
    check: Callable[[str, Spec], None] = lambda path, spec: None
    find: Callable[[str], list[str]] = patterns.find
    is_streamed: bool = False  # read once from start to end, also from a web server
    size: Callable[[str], int] = files.size


def to_batches(rows: Iterable[Sequence[texts.Row]]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of pages or samples as CANDIDATES, many of them in a batch."""
    held: list[texts.Row] = []
    for some in rows:
        held += some
        if len(held) >= _BATCH_ROWS:
            yield schema.from_rows(held, schema.CANDIDATES)
            held = []
    if held:
        yield schema.from_rows(held, schema.CANDIDATES)
