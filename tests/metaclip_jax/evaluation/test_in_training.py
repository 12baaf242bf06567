"""Tasks measured while a model trains: the same numbers as the command's."""

import numpy as np
import pytest
from sklearn import datasets

from metaclip_jax import config as keys
from metaclip_jax import metric_rows, train
from metaclip_jax.data import workers
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.evaluation import in_training, suite, tasks
from metaclip_jax.inference import model as inference
from metaclip_jax.training.job import new_state, prepare
from tests import image_layouts

COUNT = 60
FLICKR = "retrieval/flickr_1k_test_image_text_retrieval"
TASKS = f"mnist,cifar10,{FLICKR}"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Real pictures of digits, as one task of classes and one of texts."""
    pictures, labels = datasets.load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8)[:COUNT] * 15.9).astype(np.uint8)
    images = [image_layouts.png(picture) for picture in pictures]
    root = tmp_path_factory.mktemp("tasks")
    rows = [str(label).encode() for label in labels[:COUNT]]
    image_layouts.write_webdataset(root / "mnist", images, rows, "0123456789")
    texts = [f"the number {label}\ndigit {n}".encode() for n, label in enumerate(rows)]
    image_layouts.write_webdataset(root / FLICKR, images, texts, "x", ending="txt")
    return str(root)


@pytest.fixture(scope="module")
def config(data_dir, tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("run")
    write_dataset(folder / "dataset", record_count=16)
    learnt = ["a photo of the number 1 2 3"] * 9
    (folder / "t.json").write_text(train_tokenizer(learnt, 600).to_str())
    config = keys.default()
    with config.unlocked():
        config.dataset, config.tokenizer = f"{folder}/dataset", f"{folder}/t.json"
        config.image_size, config.dtype = 16, "float32"
        config.global_batch, config.total_steps, config.seed = 16, 2, 7
        config.optimizer.warmup_steps = 0
        config.tensorboard = False
        config.eval_every_steps = 1
        config.evaluation.tasks, config.evaluation.data_dir = TASKS, data_dir
        model = config.model
        model.patch_size, model.embed_dim, model.context_length = 8, 32, 12
        model.vision_width = model.text_width = 32
        model.vision_layers = model.text_layers = 2
        model.vision_heads = model.text_heads = 2
    return config


def measure(config, **changes):
    """What training measures with, for an untrained model."""
    job = prepare(config, "unused")
    asked = {"held_out": "", "task_names": TASKS, "best": ""}
    return in_training.make_measure(
        architecture=job.program.architecture,
        tokenizer=job.tokenizer,
        preprocess=job.preprocess,
        mesh=job.program.mesh,
        batch=0,
        **asked | {"data_dir": config.evaluation.data_dir} | changes,
    )


def test_training_and_the_command_give_the_same_numbers_of_tasks(
    config, data_dir, tmp_path
):
    run = str(tmp_path / "run")
    train.train(config, run, workers.Prefetcher())
    rows = metric_rows.read(run)
    found = [
        {k: v for k, v in row.items() if k.startswith("evaluation/")} for row in rows
    ]
    assert len(found) == 2 and set(found[0]) == set(found[1])

    opened = suite.open_tasks(tasks.find(TASKS.split(",")), data_dir)
    model = inference.load(run)
    numbers = suite.run(model.encoder, opened, resamples=5, report=str)
    digits, flickr = (
        numbers["tasks"][name]["value"]
        for name in ("clip26/mnist", f"datacomp38/{FLICKR}")
    )
    assert found[-1] == {
        "evaluation/clip26/mnist": digits,
        "evaluation/clip26/mean_over_1_of_26": digits,
        f"evaluation/datacomp38/{FLICKR}": flickr,
        "evaluation/datacomp38/mean_over_1_of_38": flickr,
    }


def test_what_is_told_beside_a_task_s_number_has_a_metric_of_its_own(
    config, data_dir, tmp_path
):
    """FMoW's is reported as DataComp computes it, and as WILDS defines it."""
    root = tmp_path / "wilds" / "fmow"
    pictures = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    samples = {}
    for n, picture in enumerate(pictures):
        samples[f"{n}.png"] = image_layouts.png(picture)
        samples[f"{n}.cls"] = str(n % 2).encode()
        samples[f"{n}.npy"] = image_layouts.npy([(0, 5, 1)[n % 3], 2016, n % 2])
    image_layouts.write_tar(root / "test" / "0.tar", samples)
    names = "\n".join(f"place {n}" for n in range(62))
    (root / "classnames.txt").write_text(names)
    (root / "zeroshot_classification_templates.txt").write_text("{c}\n")
    found = measure(config, task_names="wilds/fmow", data_dir=str(tmp_path))
    job = prepare(config, "unused")
    params = new_state(job, config).state.params
    metric = "evaluation/datacomp38/wilds/fmow"
    assert set(found(params)) == {
        metric,
        f"{metric}/worst_group_without_other",
        "evaluation/datacomp38/mean_over_1_of_38",
    }


def test_what_cannot_be_measured_is_refused_before_the_first_step(
    config, data_dir, tmp_path, caplog
):
    with pytest.raises(ValueError, match="got none of 1 tasks; see .* --plan"):
        measure(config, task_names="cifar10")
    assert "no images of clip26/cifar10: " in caplog.text
    assert "hf download djghosh/wds_cifar10_test" in caplog.text
    with pytest.raises(ValueError, match="single ones .* got 'cifar'"):
        measure(config, task_names="mnist,cifar")
    with pytest.raises(ValueError, match="keep_best .* evaluation/clip26/mnist, .*'x'"):
        measure(config, best="x")
    assert measure(config, best="evaluation/clip26/mean_over_1_of_26") is not None
    assert measure(config, task_names="") is None
    for n in range(10):
        (tmp_path / "mnist" / str(n)).mkdir(parents=True)
        (tmp_path / "mnist" / str(n) / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="10 of 10 images are broken: 0/x.png"):
        measure(config, data_dir=str(tmp_path), task_names="mnist")
