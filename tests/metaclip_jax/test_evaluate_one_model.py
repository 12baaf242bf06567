"""One model has one tokenizer, one way to see images and one number, however it is
reached: as it trains, by its workdir, exported to another format, by its name."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import tokenizers as rust
from PIL import Image
from tokenizers import models, pre_tokenizers, trainers

from metaclip_jax import config as keys
from metaclip_jax import (
    convert,
    evaluate,
    files,
    metric_rows,
    plan,
    train,
)
from metaclip_jax.data import pipeline, records, workers
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.evaluation import evaluator
from metaclip_jax.inference import loading
from metaclip_jax.inference import model as inference
from metaclip_jax.models import clip
from metaclip_jax.training import checkpoint, sharding
from metaclip_jax.training.job import initial_params, prepare

TEXTS = ["A RED cat, and a dog!", "the green bird", "", "a cat " * 30, "<b>&amp; 1</b>"]
LEARNT = ["a photo of a red cat and a blue dog", "the green bird sits on a house"] * 30
# Marks as in XLM-V's vocabulary, in mT5's and SigLIP's, and in our own.
VOCABULARIES = {
    "xlm_v": ["<s>", "<pad>", "</s>", "<unk>"],
    "mt5": ["<pad>", "</s>", "<unk>"],
    "own": [],
}


def write_tokenizer(path, vocabulary):
    marks = VOCABULARIES[vocabulary]
    if not marks:
        path.write_text(train_tokenizer(LEARNT, 600).to_str())
        return
    made = rust.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=marks, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(LEARNT, trainer)
    made.save(str(path))


def small(family, folder):
    """A config of a small model and its dataset."""
    config = keys.default()
    with config.unlocked():
        config.dataset = f"{folder}/dataset"
        config.tokenizer = f"{folder}/tokenizer.json"
        config.image_size, config.dtype = 16, "float32"
        config.global_batch, config.total_steps = 16, 1
        config.optimizer.warmup_steps = 0
        config.tensorboard = False
        config.evaluation.batch = 16
        config.evaluation.bootstrap_samples = 20
        model = config.model
        model.patch_size, model.embed_dim, model.context_length = 8, 32, 12
        model.vision_width = model.text_width = 32
        model.vision_layers = model.text_layers = 2
        model.vision_heads = model.text_heads = 2
        if family == "siglip":
            config.loss = "sigmoid"
            model.family, model.text_pool = "siglip", "last"
            model.activation = "gelu_tanh"
    return config


def train_run(config, workdir):
    train.train(config, str(workdir), workers.Prefetcher())
    return str(workdir)


def untrained(config, preprocess=None):
    tokenizer = load_tokenizer(config.tokenizer, family=config.model.family)
    architecture = keys.architecture(
        config,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    params = jax.device_get(clip.init(architecture, jax.random.key(0)))
    preprocess = preprocess or loading.default_preprocess(architecture)
    return loading.Loaded("untrained", architecture, params, tokenizer, preprocess)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_every_way_to_a_model_gives_the_same_tokens(
    family, vocabulary, tmp_path, write_dataset
):
    shown = {n: (TEXTS[n % len(TEXTS)] or "x",) for n in range(16)}
    write_dataset(tmp_path / "dataset", record_count=16, texts=shown)
    write_tokenizer(tmp_path / "tokenizer.json", vocabulary)
    config = small(family, tmp_path)
    job = prepare(config, str(tmp_path))
    want, _ = job.tokenizer(TEXTS, 12)
    ids = {"eos_id": job.tokenizer.eos_id, "pad_id": job.tokenizer.pad_id}
    assert plan.token_ids(config) == ids | {"vocab_size": job.tokenizer.vocab_size}

    # What the step is fed.
    stream = pipeline.batches(job.data, job.tokenizer)
    batch = next(stream)
    stream.close()
    dataset = records.open_dataset(config.dataset)
    fed = [records.decode(d).texts[0] for d in records.read(dataset, batch["record"])]
    np.testing.assert_array_equal(batch["tokens"], job.tokenizer(fed, 12)[0])

    # What a checkpoint and each export hold.
    loaded = untrained(config)
    for kind in ("checkpoint", "huggingface", "open_clip"):
        if (family, kind) == ("siglip", "open_clip"):
            continue  # it has no such model
        convert.convert(loaded, kind, str(tmp_path / kind))
        again = loading.load(tmp_path / kind)
        np.testing.assert_array_equal(again.tokenizer(TEXTS, 12)[0], want, kind)
        assert again.tokenizer.clean_up == job.tokenizer.clean_up, kind
        for name, value in ids.items():
            assert getattr(again.architecture, name) == value, (kind, name)
        # Training continues from there, with the tokenizer beside it.
        with config.unlocked():
            config.init_from = str(tmp_path / kind)
            config.tokenizer = str(tmp_path / kind / "tokenizer.json")
        resumed = prepare(config, str(tmp_path))
        np.testing.assert_array_equal(resumed.tokenizer(TEXTS, 12)[0], want)
        initial_params(resumed, config)


def test_a_trained_model_and_its_export_embed_texts_alike(tmp_path, write_dataset):
    write_dataset(tmp_path / "dataset", record_count=16)
    write_tokenizer(tmp_path / "tokenizer.json", "mt5")
    run = train_run(small("siglip", tmp_path), tmp_path / "run")
    convert.convert(loading.load(run), "huggingface", str(tmp_path / "hf"))
    one, other = (
        inference.load(source).embed_texts(TEXTS) for source in (run, tmp_path / "hf")
    )
    np.testing.assert_allclose(other, one, atol=1e-6)


def test_siglip_and_mt5_clean_and_pad_differently_though_their_files_are_alike(
    tmp_path,
):
    write_tokenizer(tmp_path / "tokenizer.json", "mt5")
    found = {
        family: load_tokenizer(tmp_path / "tokenizer.json", family=family)
        for family in ("clip", "siglip")
    }
    assert found["clip"].pad_id == 0 != found["siglip"].pad_id == 1
    assert found["siglip"].ids(["A RED cat!"]) == found["siglip"].ids(["a red cat"])
    assert found["clip"].ids(["A RED cat!"]) != found["clip"].ids(["a red cat"])
    with pytest.raises(ValueError, match="family must be one of clip, siglip, got 'x'"):
        load_tokenizer(tmp_path / "tokenizer.json", family="x")


def test_a_tokenizer_that_ends_texts_elsewhere_is_refused(tmp_path, write_dataset):
    write_dataset(tmp_path / "dataset", record_count=16)
    write_tokenizer(tmp_path / "tokenizer.json", "mt5")
    config = small("clip", tmp_path)
    loaded = untrained(config)
    convert.convert(loaded, "huggingface", str(tmp_path / "hf"))
    path = tmp_path / "hf" / "config.json"
    written = files.read_json(path)
    written["text_config"]["eos_token_id"] = 7
    files.write_json(path, written)
    with pytest.raises(ValueError, match=r"wanted eos_token_id .* 1 .* got 7"):
        loading.load(tmp_path / "hf")


def wide_picture(number):
    """Something else at either end than in the middle."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 12, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((120, 40), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, write_dataset):
    folder = write_dataset(
        tmp_path_factory.mktemp("held_out") / "dataset",
        record_count=40,
        images={n: wide_picture(n) for n in range(40)},
    )
    dataset = records.open_dataset(folder)
    ids = [records.decode(d).image_id for d in records.read(dataset, range(40))]
    task = {
        "class_names": ["red cat", "blue dog", "green bird"],
        "templates": ["a photo of a {}.", "{}"],
        "labels": {image_id: n % 3 for n, image_id in enumerate(ids)},
    }
    files.write_json(f"{folder}/zero_shot.json", task)
    return folder


def spread(loaded):
    """The model with weights so large that its answers differ."""
    rng = np.random.default_rng(7)  # the same in each
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32),
        loaded.params,
    )
    return dataclasses.replace(loaded, params=params)


def values_of(found):
    """As a metrics row has them."""
    return {
        f"evaluation/{group}/{name}": cell["value"]
        for group, cells in found.items()
        for name, cell in cells.items()
        if isinstance(cell, dict)
    }


PREPROCESS = {
    "crop": loading.Preprocess(16),
    "squash": loading.Preprocess(16, squash=True),
    "larger": loading.Preprocess(16, shortest=18),
    "even margins": loading.Preprocess(16, even_margins=True),
    "bilinear": loading.Preprocess(16, squash=True, resample=2),
}


@pytest.mark.parametrize("name", PREPROCESS)
def test_every_format_holds_how_a_model_sees_images(name, tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json", "own")
    loaded = untrained(small("clip", tmp_path), PREPROCESS[name])
    for kind in convert.FORMATS:
        output = str(tmp_path / kind)
        if kind == "open_clip" and loaded.preprocess.shortest:
            with pytest.raises(
                ValueError, match="open_clip.s preprocessing .* shortest=18"
            ):
                convert.convert(loaded, kind, output)
        else:
            convert.convert(loaded, kind, output)
            assert loading.load(output).preprocess == loaded.preprocess, kind


def test_a_model_has_the_same_numbers_by_every_way_in(
    tmp_path, write_dataset, held_out
):
    write_dataset(tmp_path / "dataset", record_count=16)
    write_tokenizer(tmp_path / "tokenizer.json", "own")
    config = small("clip", tmp_path)
    seen = []
    for name in ("crop", "squash"):
        loaded = spread(untrained(config, PREPROCESS[name]))
        convert.convert(loaded, "checkpoint", f"{tmp_path}/{name}-start")
        with config.unlocked():
            config.init_from = f"{tmp_path}/{name}-start"
            config.optimizer.peak_lr = 1e-8
            config.evaluation.held_out = held_out
            config.eval_every_steps = 1
        run = train_run(config, tmp_path / name)
        assert loading.load(run).preprocess == PREPROCESS[name]

        # While it trained.
        (row,) = metric_rows.read(run)
        numbers = {k: v for k, v in row.items() if k.startswith("evaluation/")}
        # evaluate --workdir.
        options = {"resamples": config.evaluation.bootstrap_samples}
        by_workdir = evaluate.evaluate_run(
            run,
            inference.load(run, batch=16),
            checkpoint.find_step(run, None),
            held_out_folder=held_out,
            seed=0,
            **options,
        )
        assert values_of(by_workdir["model"]) == numbers
        # evaluate --model, of the run and of what it is exported to, however many
        # rows are embedded at a time, on however many devices.
        ways, fingerprints = [run], set()
        for kind in convert.FORMATS:
            convert.convert(loading.load(run), kind, f"{run}-{kind}")
            ways.append(f"{run}-{kind}")
        shown = evaluator.open_data(held_out)
        one = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
        how = [(16, None), (5, one), (64, one), (7, None)]
        for way, (batch, mesh) in zip(ways, how, strict=True):
            model = inference.load(way, batch=batch, mesh=mesh)
            found = evaluator.evaluate(model.encoder, shown, **options)
            assert found == by_workdir["model"], (way, batch)
            fingerprints.add(model.fingerprint)
        assert len(fingerprints) == 1
        seen.append(numbers)
    assert seen[0] != seen[1]  # the two do see different things


def test_a_run_is_measured_in_the_dtype_it_was_trained_in(tmp_path, write_dataset):
    write_dataset(tmp_path / "dataset", record_count=16)
    write_tokenizer(tmp_path / "tokenizer.json", "own")
    config = small("clip", tmp_path)
    with config.unlocked():
        config.dtype = "bfloat16"
    run = train_run(config, tmp_path / "run")
    assert inference.load(run).architecture.dtype == "bfloat16"
    assert inference.load(run, dtype="float32").architecture.dtype == "float32"
