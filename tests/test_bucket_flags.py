"""Every path that a command takes may be on gs://.

One test finds the flags and config keys of all commands that take a word. Each must be
on gs:// in a command line below or in docs/cloud.md, whose commands other tests run, or
be listed here as no path. The other test runs the lines below against a real server.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import config as curation_keys
from metaclip_jax import config as training_keys
from metaclip_jax.cli import ranges
from metaclip_jax.data import embeddings, records
from tests import image_layouts, waiting
from tests.data_prep import tiny_web
from tests.data_prep.metadata import dump_files, test_wordnet

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in ("metaclip_jax", "data_prep")
    for path in sorted((ROOT / package).rglob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text()
]
# Flags with a word that is no path.
NO_PATHS = {
    *("train --coordinator", "plan --topology", "convert --preset", "search --query"),
    *("evaluate --split", "evaluate --tasks", "evaluate --paper", "predict --labels"),
    *("predict --template", "curate --workers", "build_metadata --workers"),
}
NO_PATH_KEYS = {
    *("checkpoint.keep_best", "wandb", "evaluation.tasks", "data.text_source_weights"),
    *("data.synthetic_sources", "languages", "name", "source.prefix", "source.header"),
    *("source.url_column", "source.image_column", "source.text_columns"),
    *("source.language_column", "source.page_column", "source.score_columns"),
    *("selection.score", "safety.image_scorer", "language.identifier"),
    *("safety.unsafe_prompts", "safety.safe_prompts", "safety.face_detector"),
    *("download.host_map", "download.user_agent"),
}

# In this order: they read what those above them made. B/ is the bucket.
CURATION = """
build_metadata --config=CONFIGS/metadata.py:quickstart --wordnet=B/wordnet
    --wikipedia=B/en*.bz2 --warc=B/pages*.warc.gz --pageviews=B/pageviews.txt
    --workdir=B/counted --output=B/metadata --workers=1
curate --config=CONFIGS/curate.py:quickstart --config.source.paths=B/p*.warc.gz
    --config.metadata=B/metadata.json --config.safety.words=B/words.txt
    --config.selection.exclude=('B/exclude.parquet',) --config.selection.score=score
    --config.selection.scores=('B/scores.parquet',) --config.balance.rule=online
    --config.duplicates.evaluation_sets=('B/tasks/mnist','B/tasks/cifar10')
    --config.download.host_map=HOST_MAP --workdir=B/curation --output=B/dataset
    --workers=1
verify B/dataset
export B/dataset --format=webdataset --output=B/tars
export B/metadata --format=json --output=B/json
data_card --datasets=B/dataset,B/dataset --output=B/merged
explain --counts=B/curation/matches --metadata=B/metadata.json --t=3
    --plot=B/explained.html
data.tokenizer --dataset=B/dataset --output=B/tokenizer.json --vocab_size=560
data.inspect B/dataset --output=B/sheet.html --seconds=0 --batch=8
"""
MODELS = """
train --config=CONFIGS/quickstart.py --config.dataset=
    --config.data.mixture=(('B/dataset',1.0),) --config.tokenizer=B/tokenizer.json
    --config.total_steps=2 --workdir=B/run --config.checkpoint_every_steps=1
    --config.evaluation.held_out=B/dataset
    --config.optimizer.warmup_steps=1 --config.global_batch=8 --config.mesh.data=1
    --config.cpu_devices=1
train --config=CONFIGS/quickstart.py --config.dataset=B/dataset
    --config.tokenizer=B/tokenizer.json --config.total_steps=1 --workdir=B/second
    --config.init_from=B/run --config.compilation_cache=B/compiled
    --config.evaluation.tasks=mnist --config.evaluation.data_dir=B/tasks
    --config.eval_every_steps=1 --config.evaluation.held_out= --config.global_batch=8
    --config.optimizer.warmup_steps=0 --config.mesh.data=1 --config.cpu_devices=1
plan --config=CONFIGS/quickstart.py --config.mesh.data=-1 --topology=v5e:2x2
    --config.tokenizer=B/tokenizer.json --cache=B/plans
convert --model=B/run --to=huggingface --output=B/model
predict --model=B/model --image=B/picture.png --labels=cat,dog
    --class_cache=B/classes --compilation_cache=B/compiled
embed --model=B/model --dataset=B/dataset --output=B/embeddings
    --class_cache=B/classes --compilation_cache=B/compiled
curate --config=CONFIGS/curate.py:quickstart --config.source.paths=B/p*.warc.gz
    --config.metadata=B/metadata.json --config.download.host_map=HOST_MAP
    --config.balance.rule=online --config.safety.image_scorer=clip
    --config.safety.clip_model=B/model --config.safety.unsafe_prompts=('cat',)
    --config.safety.safe_prompts=('dog',) --config.safety.max_image_score=1
    --config.duplicates.embeddings=('B/embeddings/*.parquet',)
    --config.duplicates.near_cosine=0.99999 --config.duplicates.evaluation_cosine=0.9
    --config.duplicates.evaluation_embeddings=('B/other.parquet',)
    --workdir=B/again --output=B/safe --workers=1
search --model=B/model --dataset=B/dataset --embeddings=B/embeddings
    --image=B/picture.png --output=B/found.html --class_cache=B/classes
    --compilation_cache=B/compiled
evaluate --model=B/model --data=B/tasks/mnist --prompts=B/prompts.json
    --output=B/number.json --class_cache=B/classes --compilation_cache=B/compiled
evaluate --model=B/model --tasks=mnist,cifar10 --data_dir=B/tasks --against=B/run
    --page=B/tasks.html --output=B/tasks.json
report --dataset=B/dataset --held_out=B/dataset --workdir=B/run --curation=B/curation
    --output=B/report.html
runs B/run B/second --output=B/runs.html
"""


def lines(text):
    """Splits command lines: (module, arguments), with "gs://bucket1/" for "B/"."""
    for line in re.sub(r"\n    ", " ", text.strip()).splitlines():
        name, *arguments = line.split()
        arguments = [re.sub(r"\bB/", "gs://bucket1/", one) for one in arguments]
        (module,) = (m for m in COMMANDS if m.partition(".")[2] == name)
        yield module, arguments


def on_gs(module, arguments):
    """Yields the flags and keys of a command line that are on gs://."""
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if value and "gs://" in value:
            key = flag.removeprefix("--config.")
            name = module.partition(".")[2]
            yield key if key != flag else f"{name} {flag}"


def of_the_page():
    """The command lines of docs/cloud.md."""
    text = (ROOT / "docs" / "cloud.md").read_text()
    values = dict(re.findall(r"export (\w+)='?(gs://[^'\n]*)", text))
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        block = re.sub(r"\$(\w+)", lambda found: values.get(found[1], "x"), block)
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace('eval "', "").replace('x"', "x"))
            at = words.index("-m") if "-m" in words else None
            if at is not None:
                yield words[at + 1], words[at + 2 :]


# Prints the flags with words of each command, none of which begins its work.
LIST = """
import json, runpy, sys
from absl import flags
from metaclip_jax.cli import command

WORDS = ("string", "multi string", "comma separated list of strings")
commands, before = sys.argv[1:], set(flags.FLAGS)
found = {}
for module in commands:
    sys.argv = [module]
    command.run = lambda main: None
    runpy.run_module(module, run_name="__main__")
    own = sorted(set(flags.FLAGS) - before)
    found[module] = [
        name
        for name in own
        if flags.FLAGS[name].flag_type() in WORDS
        and not flags.FLAGS.find_module_defining_flag(name).startswith("grain")
    ]
    for name in own:
        delattr(flags.FLAGS, name)
print(json.dumps(found))
"""


def test_every_path_of_every_command_is_tried_on_gs():
    code = [sys.executable, "-W", "ignore", "-c", LIST, *COMMANDS]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = {
        f"{module.partition('.')[2]} --{flag}"
        for module, names in found.items()
        for flag in names
    }
    assert {"train --workdir", "curate --output", "predict --image"} <= wanted
    keys = {
        key
        for table in (
            training_keys.RANGES,
            curation_keys.CURATE_RANGES,
            curation_keys.METADATA_RANGES,
        )
        for key, row in table.items()
        if takes_words(row)
    }
    commands = [*lines(CURATION), *lines(MODELS), *of_the_page()]
    tried = {flag for line in commands for flag in on_gs(*line)}
    assert wanted - tried == NO_PATHS
    assert keys - tried == NO_PATH_KEYS


def takes_words(row: ranges.Range) -> bool:
    if row.type is tuple:
        return any(map(takes_words, row.items or (row.each,)))
    return row.type is str and not row.choices


def encoded(number):
    out = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    ).save(out, "PNG")
    return out.getvalue()


def write_inputs(folder):
    """Writes what the first commands read."""
    alts = [(f"/{n}.jpg", f"a {('cat', 'red dog')[n % 2]} of {n}") for n in range(24)]
    tiny_web.write(folder, alts, warcs=2)
    (folder / "wordnet").mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        text = getattr(test_wordnet, part.upper())
        (folder / f"wordnet/data.{part}").write_text(test_wordnet.LICENCE + text)
    pages = [
        (f"Red fox {n}", "The red fox is a fox of the forest. " * 3) for n in range(9)
    ]
    (folder / "enwiki-1-pages-articles.xml.bz2").write_bytes(
        dump_files.multistream("en", pages)
    )
    (folder / "pageviews.txt").write_text("en Red_fox_1 90 0\n")
    (folder / "words.txt").write_text("of 3\n")
    urls = [f"http://{tiny_web.IMAGES}{path}" for path, _ in alts]
    ids = [records.image_id(url) for url in urls]
    pq.write_table(pa.table({"image_id": ids[:2]}), folder / "exclude.parquet")
    scores = {"image_id": sorted(ids), "score": np.arange(len(ids)) / len(ids)}
    pq.write_table(pa.table(scores), folder / "scores.parquet")
    other = {
        "image_id": ids[:2],
        "embedding": np.eye(128, dtype=np.float32)[:2].tolist(),
        "text_keys": [[], []],
        "text_scores": [[], []],
        "status": [embeddings.OK] * 2,
    }
    table = pa.table(other, schema=embeddings.schema(128))
    pq.write_table(table, folder / "other.parquet")
    (folder / "picture.png").write_bytes(encoded(0))
    images, labels = [encoded(n) for n in range(20)], [n % 10 for n in range(20)]
    names = [str(n) for n in range(10)]
    image_layouts.write_webdataset(
        folder / "tasks/mnist", images, [str(n).encode() for n in labels], names
    )
    (folder / "prompts.json").write_text(
        json.dumps({"templates": ["a {}."], "class_names": names})
    )
    things = "airplane automobile bird cat deer dog frog horse ship truck".split()
    features = {"label": {"names": things, "_type": "ClassLabel"}}
    image_layouts.write_parquet(folder / "tasks/cifar10", images, labels, features)
    return {path: tiny_web.picture(n) for n, (path, _) in enumerate(alts)}


def run_all(text, folder, environment, **values):
    """Runs command lines in an empty folder; none may fail, or leave a file there."""
    for name in ("work", "temporary"):
        (folder / name).mkdir(exist_ok=True)
    environment = environment | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder / "temporary"),
    }
    values |= {"CONFIGS": str(ROOT / "configs")}
    for module, arguments in lines(text):
        for name, value in values.items():
            arguments = [one.replace(name, value) for one in arguments]
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder / "work",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=waiting.SECONDS,
        )
        assert done.returncode == 0, f"{module} {arguments}\n{done.stdout[-6_000:]}"
        assert os.listdir(folder / "work") == [], (module, arguments)


@pytest.mark.slow
def test_paths_of_all_commands_may_be_on_gs(tmp_path, cloud_storage):
    """The commands have nothing but the bucket."""
    (tmp_path / "given").mkdir()
    images = write_inputs(tmp_path / "given")
    with cloud_storage() as storage, tiny_web.serve(images) as host_map:
        storage.upload(*(tmp_path / "given").iterdir())
        run_all(CURATION, tmp_path, storage.environment, HOST_MAP=host_map)
        run_all(MODELS, tmp_path, storage.environment, HOST_MAP=host_map)
