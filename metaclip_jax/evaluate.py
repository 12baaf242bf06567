"""How good a model is on images that it has not seen, beside chance.

    python -m metaclip_jax.evaluate --workdir=RUN --held_out=DIR

DIR is a dataset folder; a zero_shot.json in it adds zero-shot classification. Writes
RUN/evaluation/STEP.json (the numbers, beside the untrained model's) and
RUN/evaluation/STEP_top5.json (the best texts of the first images). The same checkpoint
gives the same files.

    python -m metaclip_jax.evaluate --model=NAME_OR_PATH --data=DIR [--prompts=FILE]

measures any model that metaclip_jax.load takes, on a dataset folder, a folder
class/image, or a TFDS dataset; evaluation/prompts.py says what FILE holds.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from metaclip_jax import (
    checkpoint,
    command,
    files,
    model_flags,
    run_config,
    runtime,
    sharding,
    train_state,
)
from metaclip_jax import config as keys
from metaclip_jax.data import images, records
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.evaluation import classification, retrieval, zero_shot
from metaclip_jax.evaluation.held_out import HeldOut, load_held_out
from metaclip_jax.models import clip

# Of these many first images the best texts are written down.
SHOWN_IMAGES, SHOWN_TEXTS = 48, 5
_DECODE_THREADS = 8

Scores = dict[str, Any]
Encoder = Callable[[clip.Params, Any], jax.Array]


class Model(NamedTuple):
    """A model that can be measured: how to encode, and in which portions.

    `batch` is rows encoded at a time, over all devices and processes.
    """

    architecture: clip.Architecture
    tokenize: tokenizers.Tokenizer
    mesh: Mesh
    batch: int
    encode_image: Encoder
    encode_text: Encoder


class Embeddings(NamedTuple):
    """Of all held-out images f32[N, E] and texts f32[M, E], unit norm."""

    image: np.ndarray
    text: np.ndarray


def make_model(
    *,
    architecture: clip.Architecture,
    tokenize: tokenizers.Tokenizer,
    mesh: Mesh,
    batch: int,
) -> Model:
    """Compiles nothing yet; `batch` is rounded up to what the mesh can split."""
    if batch < 1:
        raise ValueError(f"the evaluation batch must be at least 1, got {batch}")
    parts = sharding.batch_sharding(mesh).num_devices
    whole = sharding.replicated(mesh)

    def compiled(encode: Callable[..., jax.Array]) -> Encoder:
        return jax.jit(functools.partial(encode, architecture), out_shardings=whole)

    return Model(
        architecture=architecture,
        tokenize=tokenize,
        mesh=mesh,
        batch=-(-batch // parts) * parts,
        encode_image=compiled(clip.encode_image),
        encode_text=compiled(clip.encode_text),
    )


def embed(model: Model, params: clip.Params, held_out: HeldOut) -> Embeddings:
    """Embeds all held-out images and texts.

    Raises:
        ValueError: an image cannot be decoded; names it.
    """
    return Embeddings(
        image=_encode_images(model, params, held_out),
        text=encode_texts(model, params, held_out.texts),
    )


def encode_texts(model: Model, params: clip.Params, texts: Sequence[str]) -> np.ndarray:
    """Embeds n texts, f32[n, E], unit norm."""

    def tokens(rows: np.ndarray) -> np.ndarray:
        chosen = [texts[row] for row in rows]
        return model.tokenize(chosen, model.architecture.context_length)[0]

    return _encode(model, model.encode_text, params, tokens, total=len(texts))


def scores(
    model: Model,
    params: clip.Params,
    held_out: HeldOut,
    embeddings: Embeddings,
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> Scores:
    """Retrieval both ways and, where there is a task, zero-shot accuracy.

    Args:
        model: how texts are encoded.
        params: of the model.
        held_out: what was embedded.
        embeddings: from `embed`.
        bootstrap_samples: resamples behind each interval.
        seed: of the intervals.

    Returns:
        {"image_to_text": {"R@1": {"value", "low", "high", "chance"}, ...},
        "text_to_image": {...}, "zero_shot": {"accuracy": {...}, "classes": K, ...}}.
    """
    result: Scores = dict(
        retrieval.recall(
            embeddings.image,
            embeddings.text,
            held_out.image_of_text,
            resamples=bootstrap_samples,
            seed=seed,
        )
    )
    if held_out.task is not None:
        classes = zero_shot.class_embeddings(
            lambda texts: encode_texts(model, params, texts), held_out.task
        )
        accuracy = zero_shot.accuracy(
            embeddings.image[held_out.labelled],
            classes,
            held_out.labels,
            resamples=bootstrap_samples,
            seed=seed,
        )
        result["zero_shot"] = {**accuracy, "classes": len(classes)}
    return result


def flat(found: Scores) -> dict[str, float]:
    """Values only, as {"evaluation/image_to_text/R@1": 0.5, ...}, for metrics rows."""
    return {
        f"evaluation/{group}/{name}": cell["value"]
        for group, cells in found.items()
        for name, cell in cells.items()
        if isinstance(cell, dict)
    }


def score_names(held_out: HeldOut) -> tuple[str, ...]:
    """The keys of `flat` for these images."""
    names = tuple(
        f"evaluation/{direction}/R@{k}"
        for direction in ("image_to_text", "text_to_image")
        for k in retrieval.KS
    )
    if held_out.task is None:
        return names
    return *names, "evaluation/zero_shot/accuracy"


def best_texts(held_out: HeldOut, embeddings: Embeddings) -> list[dict[str, Any]]:
    """The first images by id, each with its first text and its best texts of all.

    Any of an image's own texts is right, also where another image has the same words.
    """
    own: list[list[str]] = [[] for _ in held_out.image_ids]
    for image, text in zip(held_out.image_of_text, held_out.texts, strict=True):
        own[image].append(text)
    rows, cosines = retrieval.best_texts(
        embeddings.image[:SHOWN_IMAGES],
        embeddings.text,
        count=min(SHOWN_TEXTS, len(held_out.texts)),
    )
    return [
        {
            "image_id": held_out.image_ids[image],
            "text": own[image][0],
            "top5": [
                {
                    "text": held_out.texts[row],
                    "score": round(float(cosine), 4),
                    "right": held_out.texts[row] in own[image],
                }
                for row, cosine in zip(rows[image], cosines[image], strict=True)
            ],
        }
        for image in range(len(rows))
    ]


def table(found: Scores) -> str:
    """The numbers of an evaluation file, a line each, in per cent."""
    lines = [
        f"step {found['step']}, {found['candidates']} held-out images",
        f"{'':<28}{'model':>7} {'95% interval':>15} {'untrained':>10} {'chance':>8}",
    ]
    for group, cells in found["model"].items():
        for name, cell in cells.items():
            if not isinstance(cell, dict):
                continue
            interval = f"{cell['low']:.1%} - {cell['high']:.1%}"
            before = found["untrained"][group][name]["value"]
            title = f"{group} {name}".replace("_", " ")
            lines.append(
                f"{title:<28}{cell['value']:>7.1%} {interval:>15} {before:>10.1%}"
                f" {cell['chance']:>8.2%}"
            )
    return "\n".join(lines)


def evaluate(
    workdir: str,
    config: ConfigDict,
    *,
    held_out_folder: str,
    step: int | None,
    batch: int,
) -> Scores:
    """Measures a checkpoint and the untrained model, and writes both files.

    Args:
        workdir: of the run.
        config: the run's, as `run_config.read` gives it.
        held_out_folder: dataset folder.
        step: which checkpoint; None = the newest.
        batch: images or texts encoded at a time.

    Returns:
        What STEP.json holds.
    """
    held_out = load_held_out(held_out_folder)
    tokenize = tokenizers.load(run_config.tokenizer_path(workdir, config))
    architecture = keys.architecture(
        config,
        vocab_size=tokenize.vocab_size,
        eos_id=tokenize.eos_id,
        pad_id=tokenize.pad_id,
    )
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    model = make_model(
        architecture=architecture, tokenize=tokenize, mesh=mesh, batch=batch
    )
    params, step = checkpoint.restore_params(
        workdir,
        architecture=architecture,
        inputs={"tokenizer": tokenize.fingerprint},
        mesh=mesh,
        step=step,
    )
    before = train_state.create_params(
        architecture=architecture, mesh=mesh, seed=config.seed
    )
    measure = functools.partial(
        scores, bootstrap_samples=config.evaluation.bootstrap_samples
    )
    embeddings = embed(model, params, held_out)
    found = {
        "step": step,
        "candidates": len(held_out.image_ids),
        "model": measure(model, params, held_out, embeddings),
        "untrained": measure(model, before, held_out, embed(model, before, held_out)),
    }
    folder = files.path(workdir) / "evaluation"
    # The numbers come last: where they are, the other file is too.
    files.write_json(folder / f"{step}_top5.json", best_texts(held_out, embeddings))
    files.write_json(folder / f"{step}.json", found)
    return found


def _encode_images(model: Model, params: clip.Params, held_out: HeldOut) -> np.ndarray:
    """Embeds the held-out images, f32[N, E]; a portion is decoded by threads."""
    size = model.architecture.image_size

    def decode(data: bytes) -> np.ndarray:
        record = records.decode(data)
        try:
            return images.decode_eval(record.image, size=size)
        except images.UndecodableImage as error:
            raise ValueError(
                f"{held_out.dataset.folder}: the held-out image {record.image_id}"
                f" cannot be decoded ({error}); make the folder again"
            ) from error

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:

        def pixels(rows: np.ndarray) -> np.ndarray:
            stored = records.read(held_out.dataset, held_out.positions[rows])
            return np.stack(list(pool.map(decode, stored)))

        return _encode(
            model, model.encode_image, params, pixels, total=len(held_out.positions)
        )


def _encode(
    model: Model,
    encode: Encoder,
    params: clip.Params,
    make: Callable[[np.ndarray], np.ndarray],
    *,
    total: int,
) -> np.ndarray:
    """Encodes rows 0..total, f32[total, E]; each process makes what its devices hold.

    `make` takes int64[n], ascending, to [n, ...]. All portions have one shape on the
    devices: the last one is filled up with the last row.
    """
    result = np.empty((total, model.architecture.embed_dim), np.float32)
    own = sharding.process_rows(model.mesh, model.batch)
    for start in range(0, total, model.batch):
        rows, place = np.unique(np.minimum(start + own, total - 1), return_inverse=True)
        batch = sharding.put_batch(model.mesh, {"rows": make(rows)[place]})
        embedded = jax.device_get(encode(params, batch["rows"]))
        result[start : start + model.batch] = embedded[: total - start]
    return result


def evaluate_model(values: Any) -> None:
    """Runs --model on --data; prints the numbers and writes --output."""
    model = model_flags.load(values)
    found = classification.evaluate(
        model,
        values.data,
        split=values.split,
        data_dir=values.data_dir or None,
        prompts_path=values.prompts,
        resamples=keys.default().evaluation.bootstrap_samples,
    )
    facts = {"model": model.name, "fingerprint": model.fingerprint, "data": values.data}
    if values.output:
        files.write_json(values.output, facts | found)
    for group, cells in found.items():
        for name, cell in cells.items():
            if isinstance(cell, dict):
                chance = f" (chance {cell['chance']:.2%})" if "chance" in cell else ""
                title = f"{group} {name}".replace("_", " ")
                print(f"{title:<42}{cell['value']:>7.2%}{chance}")


def main(argv: Sequence[str]) -> None:
    """Evaluates a run, or any model, from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    if bool(values.workdir) == bool(values.model):
        raise app.UsageError("want --workdir=RUN, or --model=NAME_OR_PATH and --data")
    if values.model:
        if not values.data:
            raise app.UsageError("want --data=DIR, what to measure --model on")
        evaluate_model(values)
        return
    config = run_config.read(values.workdir)
    held_out = values.held_out or config.evaluation.held_out
    if not held_out:
        raise app.UsageError("want --held_out=DIR, since the run's config names none")
    runtime.log_our_own_notes()
    runtime.start_jax(
        cpu_devices=(
            values.cpu_devices
            if flags.FLAGS["cpu_devices"].present
            else config.cpu_devices
        ),
        compilation_cache=values.compilation_cache or config.compilation_cache,
    )
    found = evaluate(
        values.workdir,
        config,
        held_out_folder=held_out,
        step=values.step,
        batch=(
            values.batch if flags.FLAGS["batch"].present else config.evaluation.batch
        ),
    )
    logging.info("wrote %s/evaluation/%d.json", values.workdir, found["step"])
    print(table(found))


if __name__ == "__main__":
    # Here, since training imports this module and has flags of its own.
    flags.DEFINE_string("workdir", "", "Workdir of the run.")
    flags.DEFINE_string("held_out", "", "Dataset folder; default: the run's own.")
    flags.DEFINE_integer(
        "step", None, "Checkpoint; default: the newest.", lower_bound=0
    )
    model_flags.define(required=False)
    flags.DEFINE_string("data", "", "What to measure --model on.")
    flags.DEFINE_string("split", "test", "Split of a TFDS dataset.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps datasets; default: its own.")
    flags.DEFINE_string("prompts", "", "JSON with templates and class names.")
    flags.DEFINE_string("output", "", "JSON file for the numbers of --model.")
    command.run(main)
