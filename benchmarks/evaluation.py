"""Zero-shot evaluation on one CPU core: ours against a loop of transformers.

    python -m benchmarks.evaluation             # about three minutes, needs torch

Both take the same random ViT-B/32 from one folder, in f32, and classify the same JPEGs
of 640x480 among 20 classes. Whole commands are measured in CPU seconds, with start-up,
compiling and decoding, each pinned to one core. Then texts alone, warm, in one process
each: transformers' are padded to the longest of their batch, and to the model's 77
positions, as clip_benchmark does. The answers are compared image by image.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

_IMAGES = flags.DEFINE_integer("images", 400, "of 640x480", lower_bound=20)
_TEXTS = flags.DEFINE_integer("texts", 320, "prompts", lower_bound=32)
_BATCH = flags.DEFINE_integer("batch", 32, "of the loop", lower_bound=1)
_CLASSES = 20
_TEMPLATES = ("a photo of a {}.", "a bad photo of the {}.")

# Writes the model; in a process of its own, as this one imports no jax.
_WRITE = """
import sys, dataclasses
import jax, numpy as np
from metaclip_jax import convert
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.inference import loading
from metaclip_jax.models import clip, presets
tokenizer = tokenizers.load("clip", family="clip")
architecture = dataclasses.replace(
    presets.architecture("vit_b32"), eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id
)
params = jax.device_get(clip.init(architecture, jax.random.key(0)))
preprocess = loading.default_preprocess(architecture)
loaded = loading.Loaded("random", architecture, params, tokenizer, preprocess)
convert.convert(loaded, "huggingface", sys.argv[1])
"""
_OURS = """
import sys, json
from metaclip_jax.evaluation import evaluator, prompts
from metaclip_jax.inference import model as inference
model_folder, images, prompts_file, output = sys.argv[1:]
shown = evaluator.open_data(images, prompts_path=prompts_file)
evaluator.check_headers(shown)
model = inference.load(model_folder)
found = evaluator.embed(model.encoder, shown)
classes = model.embed_classes(shown.class_names, templates=shown.templates)
json.dump((found.image @ classes.T).tolist(), open(output, "w"))
"""
_THEIRS = """
import sys, json, os, warnings
import torch, transformers
from PIL import Image
torch.set_num_threads(1)
model_folder, images, prompts_file, output, batch = sys.argv[1:]
batch = int(batch)
model = transformers.AutoModel.from_pretrained(model_folder).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
processor = transformers.CLIPImageProcessorPil.from_pretrained(model_folder)
given = json.load(open(prompts_file))
def unit(x):
    return x / x.norm(dim=-1, keepdim=True)
with torch.no_grad():
    classes = []
    for name in given["class_names"]:
        texts = [template.format(name) for template in given["templates"]]
        tokens = tokenizer(texts, padding=True, return_tensors="pt").data
        tokens.pop("token_type_ids", None)
        classes.append(unit(unit(model.get_text_features(**tokens).pooler_output).mean(0)))
    classes = torch.stack(classes)
    paths = sorted(os.path.join(d, f) for d, _, fs in os.walk(images) for f in fs)
    scores = []
    for start in range(0, len(paths), batch):
        some = paths[start : start + batch]
        shown = [Image.open(path).convert("RGB") for path in some]
        pixels = processor(shown, return_tensors="pt")["pixel_values"]
        embedded = unit(model.get_image_features(pixels).pooler_output)
        scores += (embedded @ classes.T).tolist()
json.dump(scores, open(output, "w"))
"""
_TEXTS_OURS = """
import sys, json, time
from metaclip_jax.inference import model as inference
model = inference.load(sys.argv[1])
texts = json.load(open(sys.argv[2]))
model.embed_texts(texts)
start = time.process_time()
model.embed_texts(texts)
print((time.process_time() - start) / len(texts) * 1e3)
"""
_TEXTS_THEIRS = """
import sys, json, time
import torch, transformers
torch.set_num_threads(1)
model = transformers.AutoModel.from_pretrained(sys.argv[1]).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.load(open(sys.argv[2]))
@torch.no_grad()
def embed():
    for start in range(0, len(texts), 32):
        some = texts[start : start + 32]
        tokens = tokenizer(some, padding=sys.argv[3], return_tensors="pt").data
        tokens.pop("token_type_ids", None)
        model.get_text_features(**tokens)
embed()
start = time.process_time()
embed()
print((time.process_time() - start) / len(texts) * 1e3)
"""


def write_images(folder: Path, count: int) -> None:
    """Writes smooth pictures with noise, 640x480, in folders of classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for n in range(count):
        small = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        picture = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        noisy = np.asarray(picture, np.int16) + rng.integers(-9, 10, (480, 640, 1))
        path = folder / f"class {n % _CLASSES:02d}" / f"{n:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noisy.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)


def run(code: str, *arguments: object) -> tuple[float, str]:
    """Runs a program on one core: the CPU seconds it took, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return spent, done.stdout


def main(argv: list[str]) -> None:
    """Prints the ratios."""
    del argv
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        run(_WRITE, root / "model")
        write_images(root / "images", _IMAGES.value)
        names = [f"class {n:02d}" for n in range(_CLASSES)]
        given = {"class_names": names, "templates": _TEMPLATES}
        (root / "prompts.json").write_text(json.dumps(given))
        inputs = root / "model", root / "images", root / "prompts.json"
        ours, _ = run(_OURS, *inputs, root / "ours.json")
        theirs, _ = run(_THEIRS, *inputs, root / "theirs.json", _BATCH.value)
        own, other = (
            np.array(json.loads((root / f"{who}.json").read_text()))
            for who in ("ours", "theirs")
        )
        same = (own.argmax(axis=1) == other.argmax(axis=1)).mean()
        print(
            f"Zero-shot evaluation: {theirs / ours:.2f}x less CPU time than a loop of"
            f" transformers, whole command ({ours:.1f} s against {theirs:.1f} s for"
            f" {_IMAGES.value} images; the same answer for {same:.1%} of them, cosines"
            f" within {np.abs(own - other).max():.1e})"
        )
        texts = [f"a photo of a thing of kind {n}." for n in range(_TEXTS.value)]
        (root / "texts.json").write_text(json.dumps(texts))
        mine = float(run(_TEXTS_OURS, root / "model", root / "texts.json")[1])
        for padding in ("longest", "max_length"):
            arguments = root / "model", root / "texts.json", padding
            each = float(run(_TEXTS_THEIRS, *arguments)[1])
            print(
                f"Texts, {padding} padding there: {each / mine:.1f}x less CPU time than"
                f" transformers ({mine:.1f} ms against {each:.1f} ms a text)"
            )


if __name__ == "__main__":
    app.run(main)
