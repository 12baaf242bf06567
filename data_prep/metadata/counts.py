"""Writes counts to files, sums them in bounded memory, and selects entries by sums.

The counts of a piece of a source are Parquet files with the same name in one folder per
table. Their row group i is run i of the piece, whose language is row i of the marker of
that name; a language may have several runs. DuckDB makes the sums, and spills to disk
what exceeds its memory.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.metadata import ngrams, segmentation
from data_prep.metadata.ranking import ANY, Ranked, best_first, never_matches
from metaclip_jax import files

WORDS, BIGRAMS, TITLES = "words", "bigrams", "titles"
ARTICLES, SYNSETS = "articles", "synsets"
SCHEMAS = {
    WORDS: ngrams.WORDS,
    BIGRAMS: ngrams.BIGRAMS,
    TITLES: pa.schema([("title", pa.string()), ("count", pa.int64())]),
    ARTICLES: pa.schema([("title", pa.string())]),
    SYNSETS: pa.schema([("name", pa.string()), ("count", pa.int64())]),
}
_PAIRS = pa.schema([("pair", pa.uint64()), ("count", pa.int64())])
_ROWS = 1 << 20  # of bigrams that are looked up at a time
MOST = (1 << 63) - 1  # larger sums count as this
_LEAST_MEMORY = 256 << 20  # bytes that DuckDB needs
_DIGITS = 9  # of a score: the order must not depend on a logarithm's last bits


class Part(NamedTuple):
    """The counts of a piece: a name in the folders, and the language of each run."""

    name: str
    codes: Sequence[str]


class Chosen(NamedTuple):
    """The best entries of a source, and how many reach its threshold."""

    ranked: Ranked
    offered: int


def write(
    folder: str, name: str, runs: Iterable[tuple[str, Mapping[str, pa.Table]]]
) -> list[str]:
    """Writes the runs of a piece; returns their languages, for the marker.

    Args:
      folder: holds a folder per table.
      name: of the files.
      runs: language, and tables of SCHEMAS by name, the same names in all runs.
    """
    codes: list[str] = []
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for code, tables in runs:
            for table_name, table in tables.items():
                if table_name not in writers:
                    final = files.path(folder) / table_name / name
                    local = stack.enter_context(files.staged(final))
                    writers[table_name] = stack.enter_context(
                        pq.ParquetWriter(local, table.schema, compression="zstd")
                    )
                whole = max(1, table.num_rows)
                writers[table_name].write_table(table, row_group_size=whole)
            codes.append(code)
    return codes


class Sums:
    """Sums the counts of the parts in a folder, one language at a time.

    `mode` is that of matching, see `ranking.never_matches`.
    """

    def __init__(
        self,
        folder: str,
        parts: Sequence[Part],
        database: duckdb.DuckDBPyConnection,
        *,
        mode: str = ANY,
    ) -> None:
        self._folder, self._parts, self._database = folder, parts, database
        self._mode = mode

    def sum_words(self, code: str) -> int:
        """Sums the words of a language, for the methods below; returns how many."""
        self._sum(WORDS, self._tables(WORDS, code), ngrams.WORDS, least=1)
        return self._number("SELECT coalesce(sum(count), 0) FROM words")

    def frequent_words(self, *, least: int, most: int) -> Chosen:
        """Returns the words that occur `least` times; the score is their count."""
        return self._best(f"SELECT word, count FROM words WHERE count >= {least}", most)

    def frequent_titles(self, code: str, *, least: int, most: int) -> Chosen:
        """Returns the titles with `least` or more views; the score is their number.

        If the parts have articles of the language, only titles of articles count.
        """
        tables = self._tables(TITLES, code)
        self._sum(TITLES, tables, SCHEMAS[TITLES], least=max(1, least))
        query = "SELECT title, count FROM titles"
        if any(self._tables(ARTICLES, code)):
            self._load(ARTICLES, self._tables(ARTICLES, code), SCHEMAS[ARTICLES])
            query += " SEMI JOIN articles USING (title)"
        return self._best(query, most)

    def synsets(self, code: str, *, most: int) -> Chosen:
        """Returns the names of synsets; the score is how many synsets one names."""
        self._sum(SYNSETS, self._tables(SYNSETS, code), SCHEMAS[SYNSETS], least=1)
        return self._best("SELECT name, count FROM synsets", most)

    def bigrams(
        self,
        code: str,
        *,
        tokens: int,
        min_count: int,
        score: str,
        min_score: float,
        most: int,
    ) -> Chosen:
        """Returns the bigrams with the highest scores, after `sum_words`.

        An entry's two words are joined by a space, or in languages without spaces as
        `segmentation.written` joins them.

        With n, a, b the counts of a bigram and of its words, and N = tokens, nltk's
        pointwise mutual information is log2(n N / (a b)), in bits. It cannot exceed
        log2(N / min_count).

        Args:
          code: the language.
          tokens: number of all its words.
          min_count: rarer bigrams are left out, since their PMI is mostly noise.
          score: "pmi"; or "worldwide" as in MetaCLIP 2: (n + 1)^0.7 times the PMI less
            the PMI that 30% of the bigrams do not reach.
          min_score: least score.
          most: how many bigrams at most.
        """
        self._database.execute(
            "CREATE OR REPLACE TABLE common AS"
            " SELECT word, count, row_number() OVER (ORDER BY count DESC, word) - 1 AS"
            f" id FROM words WHERE count >= {min_count}"
        )
        common = self._database.sql(
            "SELECT word FROM common ORDER BY id"
        ).to_arrow_table()["word"]
        pairs = _pairs(self._folder, self._parts, code, common.combine_chunks())
        self._sum("pairs", pairs, _PAIRS, least=min_count)
        self._database.execute(
            "CREATE OR REPLACE TABLE scored AS"
            " SELECT a.word AS first, b.word AS second, n.count AS count,"
            f" log2(n.count::DOUBLE * {tokens} / (a.count::DOUBLE * b.count)) AS pmi"
            " FROM pairs n JOIN common a ON a.id = (n.pair >> 32)"
            f" JOIN common b ON b.id = (n.pair & {0xFFFFFFFF})"
        )
        formula = "pmi"
        if score == "worldwide":
            (base,) = self._database.execute(
                "SELECT quantile_cont(pmi, 0.3) FROM scored"
            ).fetchall()[0]
            formula = f"pow(count + 1, 0.7) * (pmi - {base or 0.0!r}::DOUBLE)"
        chosen = self._best(
            "SELECT key, score FROM (SELECT first || ' ' || second AS key,"
            f" round({formula}, {_DIGITS}) AS score FROM scored)"
            f" WHERE score >= {min_score!r}::DOUBLE",
            most,
        )
        if segmentation.segmenter(code) is None:
            return chosen
        best: dict[str, float] = {}  # two bigrams may be written alike
        for bigram, points in chosen.ranked:
            best.setdefault(segmentation.written(*bigram.split(" ")), points)
        return Chosen(best_first(best.items()), chosen.offered)

    def _tables(self, table: str, code: str) -> Iterator[pa.Table]:
        for part in self._parts:
            yield from _read(self._folder, table, part, code)

    def _sum(
        self, name: str, tables: Iterator[pa.Table], schema: pa.Schema, *, least: int
    ) -> None:
        """Makes a table of the sums that reach `least`, by the first column."""
        key = schema.names[0]
        query = (
            f"SELECT {key}, least(sum(count), {MOST})::BIGINT AS count FROM counted"
            f" GROUP BY {key} HAVING sum(count) >= {least}"
        )
        self._load(name, tables, schema, query)

    def _load(
        self,
        name: str,
        tables: Iterator[pa.Table],
        schema: pa.Schema,
        query: str = "FROM counted",
    ) -> None:
        """Makes a table of a query, in which the rows are called `counted`."""
        batches = (batch for table in tables for batch in table.to_batches())
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        self._database.register("counted", reader)
        self._database.execute(f"CREATE OR REPLACE TABLE {name} AS {query}")
        self._database.unregister("counted")

    def _best(self, query: str, most: int) -> Chosen:
        """Returns the best rows of a query for entries and their scores.

        Entries that never match are among them, but do not count towards `most`.
        """
        offered = self._number(f"SELECT count(*) FROM ({query})")
        best: Ranked = []
        wanted = most
        while wanted and len(best) < offered:
            rows = self._database.execute(
                f"{query} ORDER BY 2 DESC, 1 LIMIT {wanted} OFFSET {len(best)}"
            ).fetchall()
            best += [(entry, float(score)) for entry, score in rows]
            wanted = sum(never_matches(entry, mode=self._mode) for entry, _ in rows)
        return Chosen(best, offered)

    def _number(self, query: str) -> int:
        ((number,),) = self._database.execute(query).fetchall()
        return int(number)


@contextmanager
def database(
    folder: os.PathLike[str] | str, *, memory_gib: float, threads: int
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens DuckDB in an empty local folder, to which it spills beyond its memory."""
    memory = max(_LEAST_MEMORY, math.floor(memory_gib * 2**30))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": threads,
        "memory_limit": f"{memory}B",
        "temp_directory": os.path.join(folder, "spilled"),
        "preserve_insertion_order": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    path = os.path.join(folder, "sums.duckdb")
    with duckdb.connect(path, config=settings) as connection:
        connection.execute("SET enable_progress_bar = false")
        yield connection


def _pairs(
    folder: str, parts: Sequence[Part], code: str, common: pa.StringArray
) -> Iterator[pa.Table]:
    """Yields a language's bigrams of common words.

    As _PAIRS: position of the first word in `common` << 32 | that of the second.
    """
    for part in parts:
        words_of_runs = _read(folder, WORDS, part, code)
        bigrams_of_runs = _read(folder, BIGRAMS, part, code)
        for words, bigrams in zip(words_of_runs, bigrams_of_runs, strict=True):
            positions = pc.index_in(words["word"], value_set=common)
            ids = positions.fill_null(-1).to_numpy().astype(np.int64)
            for start in range(0, bigrams.num_rows, _ROWS):
                rows = bigrams.slice(start, _ROWS)
                first, second = (
                    ids[rows[name].to_numpy()] for name in ("first", "second")
                )
                both = (first >= 0) & (second >= 0)
                pair = (first[both] << 32 | second[both]).astype(np.uint64)
                times = rows["count"].to_numpy()[both]
                yield pa.Table.from_arrays(
                    [pa.array(pair), pa.array(times)], schema=_PAIRS
                )


def _read(folder: str, table: str, part: Part, code: str) -> Iterator[pa.Table]:
    """Yields the rows of each run of a language."""
    runs = [i for i, language in enumerate(part.codes) if language == code]
    path = files.path(folder) / table / part.name
    if not runs or not path.exists():
        return
    with files.naming(path, "a part"), files.open_parquet(path) as parquet:
        for i in runs:
            yield parquet.read_row_group(i, use_threads=False)
