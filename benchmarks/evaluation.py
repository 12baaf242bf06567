"""Zero-shot evaluation on one CPU core: ours against transformers and clip_benchmark.

    python -m benchmarks.evaluation             # about five minutes, needs torch

The others are a loop over transformers' model, and clip_benchmark's own zero-shot
functions on open_clip's model. All use the same random ViT-B/32, exported for each, in
f32, and classify the same 640 x 480 JPEGs among 20 classes. Whole commands are measured
in CPU seconds, including start-up, compilation and decoding, each pinned to one core,
after a run on a few images, which leaves the bytecode of its modules. open_clip's
transforms need torchvision; if it is not installed, Pillow and NumPy do the same steps.
Then texts alone, after a warm-up, in one process each: transformers pads them to the
longest text of the batch or to the model's 77 positions, clip_benchmark always to 77.
The predictions are compared image by image.

The matrix products bound what any program can gain in f32. So their FLOPs are counted,
and the core's speed is measured for a product of the MLP's size, in three libraries.

Last, the whole command on 20 images with a small model, of which starting is most.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from metaclip_jax.cli import command

_CLASSES = 20
_TEMPLATES = ("a photo of a {}.", "a bad photo of the {}.")

# Writes the model, in a separate process so that this one imports no jax.
_WRITE = """
import sys, dataclasses
import jax, numpy as np
from metaclip_jax import convert
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.inference import loading
from metaclip_jax.models import clip, presets
tokenizer = load_tokenizer("clip", family="clip")
architecture = dataclasses.replace(
    presets.architecture("vit_b32"), eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id
)
if sys.argv[2] == "small":
    sizes = {f"{tower}_{size}": n for tower in ("vision", "text") for size, n in
             (("width", 64), ("heads", 1), ("layers", 2), ("mlp_width", 256))}
    architecture = dataclasses.replace(architecture, **sizes, image_size=64)
params = jax.device_get(clip.init(architecture, jax.random.key(0)))
preprocess = loading.default_preprocess(architecture)
loaded = loading.Loaded("random", architecture, params, tokenizer, preprocess)
for kind in ("huggingface", "open_clip"):
    convert.convert(loaded, kind, f"{sys.argv[1]}/{kind}")
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
# clip_benchmark's, on open_clip's model; without torchvision its steps by Pillow.
_OPEN_CLIP = """
import torch
from benchmarks import open_clip_alone
torch.set_num_threads(1)
open_clip = open_clip_alone.load()
from clip_benchmark.metrics import zeroshot_classification as theirs
name = f"local-dir:{sys.argv[1]}/open_clip"
model = open_clip.create_model(name).eval()
tokenizer = open_clip.get_tokenizer(name)
"""
_CLIP_BENCHMARK = f"""
import sys, json, os
import numpy as np
from PIL import Image
{_OPEN_CLIP}
_, images, prompts_file, output, batch = sys.argv[1:]
given = json.load(open(prompts_file))
templates = [template.replace("{{}}", "{{c}}") for template in given["templates"]]
asked = model.visual.preprocess_cfg
mean, std = (np.array(asked[key], np.float32) for key in ("mean", "std"))
size = model.visual.image_size[0]
def prepare(path):
    image = Image.open(path)
    resized = [size * side // min(image.size) for side in image.size]
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (round((s - size) / 2) for s in image.size)
    image = image.crop((left, top, left + size, top + size)).convert("RGB")
    pixels = (np.asarray(image, np.float32) / 255 - mean) / std
    return torch.from_numpy(pixels).permute(2, 0, 1)
class Images(torch.utils.data.Dataset):
    def __init__(self):
        walk = os.walk(images)
        self.paths = sorted(os.path.join(d, f) for d, _, fs in walk for f in fs)
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, row):
        return prepare(self.paths[row]), 0
loader = torch.utils.data.DataLoader(Images(), batch_size=int(batch))
classifier = theirs.zero_shot_classifier(
    model, tokenizer, given["class_names"], templates, "cpu", amp=False
)
logits, _ = theirs.run_classification(model, classifier, loader, "cpu", amp=False)
json.dump((logits / 100).tolist(), open(output, "w"))
"""
# FLOPs of an image's matrix products, and the core's FLOP/s for one of 32 images' MLP.
_BOUND = """
import functools, json, time
import jax, jax.numpy as jnp, numpy as np, torch
from metaclip_jax.models import clip, presets
from metaclip_jax.training import flops
torch.set_num_threads(1)
model = presets.architecture("vit_b32")
size = model.image_size
image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
encode = functools.partial(clip.encode_image, model)
count = flops.count(encode, clip.param_shapes(model), image)
rows = 32 * (model.patches + 1)
left = np.ones((rows, model.vision_width), np.float32)
right = np.ones((model.vision_width, model.vision_mlp_width), np.float32)
def speed(multiply, *matrices):
    seconds = []
    for _ in range(20):
        start = time.process_time()
        multiply(*matrices)
        seconds.append(time.process_time() - start)
    return 2 * left.size * right.shape[1] / min(seconds)
product = jax.jit(jnp.matmul)
both = left, right
xla = speed(lambda *x: product(*x).block_until_ready(), *map(jnp.asarray, both))
numpy = speed(np.matmul, *both)
print(json.dumps([count, xla, numpy, speed(torch.matmul, *map(torch.tensor, both))]))
"""
_TEXTS_CLIP_BENCHMARK = f"""
import sys, json, time
{_OPEN_CLIP}
texts = json.load(open(sys.argv[2]))
half, templates = texts[: len(texts) // 2], ["{{c}}", "a {{c}}"]
def embed():
    theirs.zero_shot_classifier(model, tokenizer, half, templates, "cpu", amp=False)
embed()
start = time.process_time()
embed()
print((time.process_time() - start) / (2 * len(half)) * 1e3)
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
    """Writes smooth 640 x 480 pictures with noise, in one folder per class."""
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


def run(root: Path, code: str, *arguments: object) -> tuple[float, str]:
    """Runs a program on one core; returns its CPU seconds and its stdout.

    Its bytecode stays in a folder of `root`.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    environment |= {"PYTHONPYCACHEPREFIX": str(root / "bytecode"), "TQDM_DISABLE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
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
    command.refuse_arguments(argv)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for size in ("model", "small"):
            run(root, _WRITE, root / size, size)
        write_images(root / "few", _CLASSES)
        write_images(root / "images", flags.FLAGS.images)
        names = [f"class {n:02d}" for n in range(_CLASSES)]
        given = {"class_names": names, "templates": _TEMPLATES}
        (root / "prompts.json").write_text(json.dumps(given))
        _compare_images(root)
        _compare_texts(root)
        _compare_starts(root)


def _compare_images(root: Path) -> None:
    """Prints the ratios for whole commands, and whether predictions agree."""
    huggingface = root / "model" / "huggingface"

    def classify(code: str, *model_and_batch: object) -> tuple[float, np.ndarray]:
        model, *batch = model_and_batch
        for images in ("few", "images"):
            inputs = root / images, root / "prompts.json", root / "scores.json"
            seconds, _ = run(root, code, model, *inputs, *batch)
        return seconds, np.array(json.loads((root / "scores.json").read_text()))

    ours, own = classify(_OURS, huggingface)
    opponents = {
        "clip_benchmark with open_clip": (_CLIP_BENCHMARK, root / "model"),
        "a loop of transformers": (_THEIRS, huggingface),
    }
    count, *speeds = json.loads(run(root, _BOUND)[1])
    bound = flags.FLAGS.images * count / speeds[0]
    xla, numpy, torch = (f"{speed / 1e9:.0f}" for speed in speeds)
    print(
        f"evaluation: the images' matrix products alone take {bound:.1f} s, at {xla}"
        f" GFLOP/s for a large one in XLA (NumPy {numpy}, torch {torch})"
    )
    for name, (code, model) in opponents.items():
        theirs, other = classify(code, model, flags.FLAGS.batch)
        same = (own.argmax(axis=1) == other.argmax(axis=1)).mean()
        print(
            f"evaluation: {theirs / ours:.2f}x less CPU time than {name}, whole"
            f" command ({ours:.1f} s against {theirs:.1f} s for"
            f" {flags.FLAGS.images} images, {theirs / bound:.2f}x if the products were"
            f" all; the same prediction for {same:.1%}, cosines within"
            f" {np.abs(own - other).max():.1e})"
        )


def _compare_texts(root: Path) -> None:
    """Prints the ratios of CPU time per text, after compilation."""
    texts = [f"a photo of a thing of kind {n}." for n in range(flags.FLAGS.texts)]
    # A text costs the others the same among fewer.
    path, few = root / "texts.json", root / "few.json"
    path.write_text(json.dumps(texts))
    few.write_text(json.dumps(texts[: len(texts) // 5]))
    huggingface = root / "model" / "huggingface"
    mine = float(run(root, _TEXTS_OURS, huggingface, path)[1])
    opponents = {
        "clip_benchmark with open_clip": (_TEXTS_CLIP_BENCHMARK, root / "model", few),
        **{
            f"transformers, padding={padding}": (
                _TEXTS_THEIRS,
                huggingface,
                few,
                padding,
            )
            for padding in ("longest", "max_length")
        },
    }
    for name, (code, *arguments) in opponents.items():
        each = float(run(root, code, *arguments)[1])
        print(
            f"evaluation: {each / mine:.1f}x less CPU time per text than {name}"
            f" ({mine:.1f} ms against {each:.1f} ms)"
        )


def _compare_starts(root: Path) -> None:
    """Prints the ratio for whole commands with a small model."""
    model = root / "small/huggingface"
    inputs = root / "few", root / "prompts.json", root / "scores.json"
    ours, theirs = (
        [run(root, code, model, *inputs, *batch)[0] for _ in range(2)][-1]
        for code, batch in ((_OURS, ()), (_THEIRS, (flags.FLAGS.batch,)))
    )
    print(
        f"evaluation: {theirs / ours:.2f}x less CPU time than a loop of transformers"
        f" with a small model ({ours:.1f} s against {theirs:.1f} s for {_CLASSES}"
        " images)"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("images", 400, "Images of 640 x 480.", lower_bound=20)
    flags.DEFINE_integer("texts", 1600, "Prompts to embed.", lower_bound=160)
    flags.DEFINE_integer("batch", 32, "Batch of the other programs.", lower_bound=1)
    command.run(main)
