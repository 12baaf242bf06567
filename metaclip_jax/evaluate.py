"""Evaluates a model: zero-shot classification, retrieval, and the paper's tasks.

    python -m metaclip_jax.evaluate --workdir=RUN --held_out=DIR

measures a run's checkpoint on a dataset folder, which may have a zero_shot.json for
classification. It writes RUN/evaluation/STEP.json (the results of this model and of the
untrained one) and RUN/evaluation/STEP_top5.json (the best texts of the first images).
The same checkpoint gives the same files.

    python -m metaclip_jax.evaluate --model=NAME_OR_PATH --data=DIR [--prompts=FILE]

measures any model that metaclip_jax.load takes, on a dataset folder, a folder
CLASS/IMAGE, one in the hub's WebDataset layout or of Parquet files, or a TFDS dataset;
evaluation/prompts.py describes FILE.

    python -m metaclip_jax.evaluate --model=NAME_OR_PATH --tasks=clip26 --data_dir=DIR

runs the paper's 26 tasks (or datacomp38, retrieval, xm3600, babel, or single ones, such
as cifar10,food101) on the images in DIR. --plan only lists which images DIR has, how to
get the others and how long it takes; --download downloads those that the hub has.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from metaclip_jax import config as keys
from metaclip_jax import files
from metaclip_jax.cli import command, errors
from metaclip_jax.evaluation import downloads, evaluator, plan, retrieval, suite, tasks
from metaclip_jax.evaluation.examples import Embeddings, Examples
from metaclip_jax.inference import model as inference
from metaclip_jax.inference import model_flags
from metaclip_jax.training import run_config

# The numbers of images in STEP_top5.json and of texts for each.
SHOWN_IMAGES, SHOWN_TEXTS = 48, 5


def best_texts(held_out: Examples, embeddings: Embeddings) -> list[dict[str, Any]]:
    """Returns the first images by id, each with its first text and its best texts.

    A text is right if it equals one of the image's texts.
    """
    own: list[list[str]] = [[] for _ in held_out.names]
    for image, text in zip(held_out.image_of_text, held_out.texts, strict=True):
        own[image].append(text)
    rows, cosines = retrieval.best_texts(
        embeddings.image[:SHOWN_IMAGES],
        embeddings.text,
        count=min(SHOWN_TEXTS, len(held_out.texts)),
    )
    return [
        {
            "image_id": held_out.names[image],
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


def table(results: dict[str, Any]) -> str:
    """Formats the results of an evaluation file, one per line, in per cent."""
    lines = [
        f"step {results['step']}, {results['candidates']} held-out images",
        f"{'':<28}{'model':>7} {'95% interval':>15} {'untrained':>10} {'chance':>8}",
    ]
    for group, cells in results["model"].items():
        for name, cell in cells.items():
            if not isinstance(cell, dict):
                continue
            interval = ""
            if "low" in cell:
                interval = f"{cell['low']:.1%} - {cell['high']:.1%}"
            chance = f"{cell['chance']:.2%}" if "chance" in cell else ""
            before = results["untrained"][group][name]["value"]
            title = f"{group} {name}".replace("_", " ")
            lines.append(
                f"{title:<28}{cell['value']:>7.2%} {interval:>15} {before:>10.2%}"
                f" {chance:>8}"
            )
    return "\n".join(lines)


def evaluate_run(
    workdir: str,
    model: inference.Model,
    step: int,
    *,
    held_out_folder: str,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Measures a checkpoint and the untrained model, and writes both files.

    Args:
        workdir: of the run.
        model: the run's model at `step`.
        step: of the checkpoint.
        held_out_folder: dataset folder.
        seed: the run's, for the untrained parameters.
        resamples: of each interval's bootstrap.

    Returns:
        The content of STEP.json.
    """
    # Slow imports.
    from metaclip_jax.evaluation.held_out import load_held_out
    from metaclip_jax.training import train_state

    held_out = load_held_out(held_out_folder)
    trained = model.encoder
    untrained = trained.with_params(
        train_state.create_params(
            architecture=trained.architecture, mesh=trained.mesh, seed=seed
        )
    )
    results: dict[str, Any] = {"step": step, "candidates": len(held_out.names)}
    # The trained model comes last, because `best_texts` uses its embeddings.
    for name, encoder in (("untrained", untrained), ("model", trained)):
        embedded = evaluator.embed_usable(encoder, held_out)
        results[name] = evaluator.numbers(encoder, embedded, resamples=resamples)
    folder = files.path(workdir) / "evaluation"
    # STEP.json comes last, so that both files exist if it does.
    files.write_json(
        folder / f"{step}_top5.json", best_texts(held_out, embedded.embeddings)
    )
    files.write_json(folder / f"{step}.json", results)
    return results


def evaluate_model(values: Any) -> None:
    """Measures --model on --data; prints the results and writes --output."""
    examples = evaluator.open_data(
        values.data,
        split=values.split or "test",
        data_dir=values.data_dir or None,
        prompts_path=values.prompts,
    )
    classes = len(examples.class_names)
    contents = f"{len(examples.names)} images"
    contents += f" of {classes} classes" if classes else ""
    contents += f" with {len(examples.texts)} texts" if examples.texts else ""
    print(f"{values.data}: {contents}", flush=True)
    if not values.skip_broken:
        evaluator.check_headers(examples)  # before a model takes its time
    model = model_flags.load(values)
    results = evaluator.evaluate(
        model.encoder,
        examples,
        resamples=keys.default().evaluation.bootstrap_samples,
        skip_broken=values.skip_broken,
    )
    facts = {"model": model.name, "fingerprint": model.fingerprint, "data": values.data}
    if values.output:
        files.write_json(values.output, facts | results)
    rows = {
        f"{group} {name}".replace("_", " "): cell
        for group, cells in results.items()
        for name, cell in cells.items()
        if isinstance(cell, dict)
    }
    width = max(map(len, rows), default=0)
    lines = [suite.row(title, cell, width) for title, cell in rows.items()]
    lines = [*suite.skipped(results), suite.header("", width), *lines]
    print(errors.visible("\n".join(lines)))


def evaluate_tasks(values: Any) -> None:
    """Runs --tasks on the images in --data_dir; prints a table, writes --output.

    Raises:
        FileNotFoundError: there is no --data_dir.
        ValueError: it has no images of any of the tasks.
    """
    asked = tasks.find(values.tasks)
    if values.paper:
        tasks.paper_row(values.paper)  # fails early
    if not (values.plan or values.download or files.path(values.data_dir).is_dir()):
        raise FileNotFoundError(
            f"wanted a folder of images as --data_dir, got {values.data_dir}, which is"
            " not there; correct it, or add --download or --plan"
        )
    for task in asked if values.download else ():
        if downloads.wanted(task, values.data_dir):
            downloads.download(task, values.data_dir)
    opened = suite.open_tasks(asked, values.data_dir)
    if values.plan and not values.model:
        print(plan.describe(opened))
        return
    if not values.plan and all(task.examples is None for task in opened):
        print(plan.describe(opened))
        raise ValueError(
            f"wanted images of --tasks in {values.data_dir}, got none; the lines"
            " above say how to get them"
        )
    if not (values.plan or values.skip_broken):
        for examples in suite.image_sets(task.examples for task in opened):
            evaluator.check_headers(examples)  # before a model takes its time
    model = model_flags.load(values)
    if values.plan:
        print(plan.describe(opened, plan.measured(model.encoder)))
        return
    other = model_flags.load(values, values.against) if values.against else None
    results = suite.run(
        model.encoder,
        opened,
        resamples=keys.default().evaluation.bootstrap_samples,
        skip_broken=values.skip_broken,
        against=other.encoder if other else None,
        paper=values.paper,
        report=functools.partial(print, flush=True),
    )
    print(errors.visible(suite.summary(results)))
    facts = {"model": model.name, "fingerprint": model.fingerprint}
    if other:
        facts |= {"against": other.name, "fingerprint_of_against": other.fingerprint}
    if values.paper:
        facts["paper"] = values.paper
    if values.page:
        from metaclip_jax.evaluation import page  # a slow import, because of charts

        files.write_bytes(values.page, page.render(facts | results))
    for result in results["tasks"].values():
        for confusion in result.get("confusions", ()):
            confusion.pop("picture")  # only the page shows it
    if values.output:
        files.write_json(values.output, facts | results)


# What is measured, and the flags that only it takes.
_FLAGS_OF = {
    "--workdir": ("workdir", "held_out", "step"),
    "--data": ("data", "split", "prompts", "data_dir", "skip_broken", "output"),
    "--tasks": (
        *("tasks", "data_dir", "against", "paper", "page", "plan", "download"),
        *("skip_broken", "output"),
    ),
}


def check_flags(values: Mapping[str, Any]) -> None:
    """Checks that the flags name a model and what to measure it on, and no more.

    Args:
      values: of all flags by name; those that are not given are empty, None or False.

    Raises:
      UsageError: they do not; says what to add or remove.
    """
    given = {name for name, value in values.items() if value}
    given |= {"step"} if values["step"] is not None else set()  # 0 is a step
    if values["tasks"]:
        measured = "--tasks"
        missing = {
            "--data_dir=DIR": not values["data_dir"],
            "--model=NAME_OR_PATH (or --plan)": not given & {"model", "plan"},
        }
        if wanted := [flag for flag, is_missing in missing.items() if is_missing]:
            raise app.UsageError(f"wanted {' and '.join(wanted)} with --tasks; add it")
        if values["download"] and not files.is_local(values["data_dir"]):
            raise app.UsageError(
                "wanted a local --data_dir with --download, got"
                f" {values['data_dir']}; copy the images there afterwards"
            )
    elif bool(values["workdir"]) == bool(values["model"]):
        got = "both" if values["model"] else "neither"
        raise app.UsageError(
            "wanted --workdir=RUN, or --model=NAME_OR_PATH with --data=DIR or with"
            f" --tasks=NAMES and --data_dir=DIR, got {got}; --help explains them"
        )
    elif values["model"] and not values["data"]:
        raise app.UsageError(
            "wanted --data=DIR, or --tasks=NAMES and --data_dir=DIR, to measure --model"
            " on, got none"
        )
    else:
        measured = "--data" if values["model"] else "--workdir"
    elsewhere = {name for names in _FLAGS_OF.values() for name in names}
    if unused := sorted(given & elsewhere - set(_FLAGS_OF[measured])):
        flags_of = ", ".join(f"--{name}" for name in _FLAGS_OF[measured])
        raise app.UsageError(
            f"wanted with {measured} none but {flags_of} and the model's, got"
            f" {', '.join(f'--{name}' for name in unused)}; leave it out"
        )


def main(argv: Sequence[str]) -> None:
    """Evaluates a run, or any model, from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    command.check_output("--page", values.page, ".html")
    command.check_output("--output", values.output, ".json")
    check_flags(values.flag_values_dict())
    if values.tasks:
        evaluate_tasks(values)
        return
    if values.model:
        evaluate_model(values)
        return
    from metaclip_jax.training import checkpoint  # a slow import, because of Orbax

    config = run_config.read(values.workdir)
    held_out = values.held_out or config.evaluation.held_out
    if not held_out:
        raise app.UsageError(
            "wanted --held_out=DIR, because the run's config has none; add it"
        )
    # The run's options, unless the command line sets them.
    for name, value in (
        ("cpu_devices", config.cpu_devices),
        ("compilation_cache", config.compilation_cache),
        ("batch", config.evaluation.batch),
    ):
        if not values[name].present:
            values[name].value = value
    step = checkpoint.find_step(values.workdir, values.step)
    results = evaluate_run(
        values.workdir,
        model_flags.load(values, values.workdir, step),
        step,
        held_out_folder=held_out,
        seed=config.seed,
        resamples=config.evaluation.bootstrap_samples,
    )
    logging.info("wrote %s/evaluation/%d.json", values.workdir, results["step"])
    print(table(results))


if __name__ == "__main__":
    # Defined here, because training has its own flags.
    flags.DEFINE_string("workdir", "", "Workdir of the run.")
    flags.DEFINE_string("held_out", "", "Dataset folder; default: the run's.")
    flags.DEFINE_integer(
        "step", None, "Checkpoint; default: the newest.", lower_bound=0
    )
    model_flags.define(required=False)
    flags.DEFINE_string("data", "", "Folder or TFDS dataset to measure --model on.")
    flags.DEFINE_string("split", "", "Split of --data; default: test.")
    flags.DEFINE_list(
        "tasks",
        [],
        "Instead of --data: clip26, datacomp38, retrieval, xm3600, babel, or tasks.",
    )
    flags.DEFINE_string(
        "data_dir", "", "Folder of the tasks' images, or of TFDS's datasets."
    )
    flags.DEFINE_string("against", "", "Another model to compare with on --tasks.")
    flags.DEFINE_string("paper", "", "Row of the paper to show, such as B/32-400M.")
    flags.DEFINE_string("page", "", "HTML file for the results of --tasks.")
    flags.DEFINE_bool(
        "plan",
        False,
        "Only list which images --tasks has and lacks, and how long it takes.",
    )
    flags.DEFINE_bool("download", False, "Download images of --tasks from the hub.")
    flags.DEFINE_string(
        "prompts", "", "JSON with templates and class names, of --data."
    )
    flags.DEFINE_bool(
        "skip_broken", False, "Skip and list broken images of --data or --tasks."
    )
    flags.DEFINE_string("output", "", "JSON file for the results of --data or --tasks.")
    command.run(main)
