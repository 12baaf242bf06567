"""Worldwide, small: from a web in twelve languages to a CLIP, evaluated per language.

    python -m examples.worldwide.run --workdir=worldwide_run

It prints and runs the project's commands: metadata from Wikipedia dumps of each
language, curation with t per language from English's tail share (MetaCLIP 2), a
tokenizer of XLM-V's kind, training, retrieval in each language. A finished command is
not run again. --page=docs/worldwide.md writes the numbers.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from data_prep.report import load
from examples.quickstart import run as quickstart
from examples.quickstart.run import Stage
from examples.worldwide import build, names
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import balance, tokenizer
from metaclip_jax.evaluation.languages import CAPTIONS

_VOCABULARY = 8_192
_HEAD = """# Worldwide, small

Written by `python -m examples.worldwide.run --page=docs/worldwide.md`.

A sample web has galleries of {pictures} drawings in twelve languages, English in three
editions. Each language gets its own metadata from a Wikipedia dump and page views. t is
given for English ({t}); the t of each other language leaves about the same share of its
matches in the tail ({share:.1%}); it is a whole number, so the shares
differ. The tokenizer is of XLM-V's kind, with {tokens:,} tokens. The model is the quick
start's, trained for {steps} steps. Retrieval is among {candidates} held-out
compositions (chance {chance:.1%}), with the captions of one language at a time.

"""
_COLUMNS = (
    "language", "metadata entries", "matches", "t", "matches in the tail",
    "texts kept", "tokens a caption", "image to text R@1", "text to image R@1",
)  # fmt: skip
_WAYS = ("image_to_text", "text_to_image")


def main(argv: list[str]) -> None:
    """Runs every stage that is not finished, then prints the table."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    workdir = Path(values.workdir)
    wanted = stages(
        workdir,
        quickstart.recipes(),
        pictures=values.pictures,
        t=values.t,
        steps=values.steps,
    )
    site = workdir / "world" / "site"
    quickstart.run_all(wanted, workdir, site=site, fresh=values.fresh)
    page = render(workdir)
    quickstart.say(page)
    if values.page:
        files.write_bytes(values.page, page.encode())


def stages(
    workdir: Path, configs: Path, *, pictures: int, t: int, steps: int
) -> list[Stage]:
    """Returns all stages, in order.

    Args:
      workdir: of all output.
      configs: folder of recipes.
      pictures: on the web; 0 = all.
      t: accepted draws of an English entry.
      steps: of training.
    """
    curated = _curation(workdir, configs, pictures=pictures, t=t)
    return [*curated, *_training(workdir, configs, steps=steps)]


def _curation(workdir: Path, configs: Path, *, pictures: int, t: int) -> list[Stage]:
    world = workdir / "world"
    return [
        Stage(
            "Build a small web and its Wikipedias",
            "examples.worldwide.build",
            {"output": world, "pictures": pictures},
            result=f"{world}/manifest.json",
        ),
        quickstart.crawl(workdir),
        Stage(
            "Build the metadata of each language",
            "data_prep.build_metadata",
            {
                "config": configs / "metadata.py:quickstart",
                "config.languages": names.LANGUAGES,
                "wikipedia": world / "dumps" / build.DUMP,
                "pageviews": world / "dumps" / build.PAGEVIEWS,
                "output": workdir / "metadata",
            },
            result=f"{workdir}/metadata/manifest.json",
        ),
        Stage(
            "Curate: match and balance by language",
            "data_prep.curate",
            {
                "config": configs / "curate.py:worldwide",
                "config.name": "worldwide",
                "config.source.paths": workdir / "crawl" / "*.warc.gz",
                "config.metadata": workdir / "metadata",
                "config.partitions": 4,
                "config.balance.t": t,
                "config.balance.slack": 2.0,
                "config.download.host_map": quickstart.HOST_MAP,
                "workdir": workdir / "curation",
                "output": workdir / "dataset",
            },
            result=f"{workdir}/dataset/manifest.json",
            needs_server=True,
        ),
    ]


def _training(workdir: Path, configs: Path, *, steps: int) -> list[Stage]:
    return [
        Stage(
            "Train a tokenizer of XLM-V's kind",
            "metaclip_jax.data.tokenizer",
            {
                "dataset": workdir / "dataset",
                "model": "unigram",
                "vocab_size": _VOCABULARY,
                "output": workdir / "tokenizer.json",
            },
            result=f"{workdir}/tokenizer.json",
        ),
        Stage(
            "Train CLIP",
            "metaclip_jax.train",
            {
                "config": configs / "quickstart.py",
                "config.dataset": workdir / "dataset",
                "config.tokenizer": workdir / "tokenizer.json",
                "config.model.context_length": 24,
                "config.total_steps": steps,
                "config.optimizer.warmup_steps": min(50, steps // 2),
                "workdir": workdir / "run",
            },
            result=f"{workdir}/run/manifest.json",
        ),
        Stage(
            "Evaluate in each language",
            "metaclip_jax.evaluate",
            {
                "model": workdir / "run",
                "tasks": ",".join(f"xm3600/{code}" for code in names.LANGUAGES),
                "data_dir": workdir / "world" / "held_out",
                "cpu_devices": 2,
                "output": workdir / "evaluation.json",
            },
            result=f"{workdir}/evaluation.json",
        ),
    ]


def render(workdir: Path) -> str:
    """Returns docs/worldwide.md: a row of figures for each language."""
    card = files.read_json(workdir / "dataset" / "data_card.json")
    tasks = files.read_json(workdir / "evaluation.json")["tasks"]
    counts = pool_counts(workdir / "dataset")
    t = card["balanced"]["t"]
    rows = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for code in names.LANGUAGES:
        task = tasks[f"xm3600/{code}"]
        recalls = (task["results"][way]["R@1"]["value"] for way in _WAYS)
        cells = (
            f"{names.SAYINGS[code].label} ({code})",
            f"{card['metadata'][code]['entries']:,}",
            f"{counts[code].sum():,}",
            f"{t[code]:,}",
            f"{balance.share_below(counts[code], t[code]):.1%}",
            f"{card['texts_by_metadata'].get(code, 0):,}",
            f"{tokens_per_caption(workdir, code):.1f}",
            *(f"{recall:.0%}" for recall in recalls),
        )
        rows.append(f"| {' | '.join(cells)} |")
    manifest = files.read_json(workdir / "world" / files.MANIFEST)
    head = _HEAD.format(
        pictures=manifest["pictures"],
        t=t["en"],
        share=balance.share_below(counts["en"], t["en"]),
        tokens=tokenizer.load(workdir / "tokenizer.json", family="clip").tokens,
        steps=files.read_json(workdir / "run" / "config.json")["total_steps"],
        candidates=task["images"],
        chance=task["chance"],
    )
    return head + "\n".join(rows) + "\n"


def pool_counts(dataset: Path) -> dict[str, np.ndarray]:
    """Returns i64[n] by metadata code: all matches of each entry that has any."""
    return {each.code: each.pool for each in load.entry_counts(str(dataset), {})}


def tokens_per_caption(workdir: Path, code: str) -> float:
    """Returns the mean number of tokens of the held-out captions in a language."""
    lines = (workdir / "world/held_out/xm3600" / CAPTIONS).read_text("utf-8")
    texts = [json.loads(line)[code]["caption"][0] for line in lines.splitlines()]
    own = tokenizer.load(workdir / "tokenizer.json", family="clip")
    return sum(map(len, own.ids(texts))) / len(texts)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "worldwide_run", "Folder for all output.")
    flags.DEFINE_bool("fresh", False, "Remove an earlier run's files and start over.")
    flags.DEFINE_integer("pictures", 0, "Pictures on the web; 0 = all.", lower_bound=0)
    flags.DEFINE_integer("t", 20, "Accepted draws per English entry.", lower_bound=1)
    flags.DEFINE_integer("steps", 200, "Training steps.", lower_bound=1)
    flags.DEFINE_string("page", "", "Markdown file for the numbers.")
    command.run(main)
