"""How to get the images of a task: the command, the size and the licence.

texts/sizes.tsv has the sizes in megabytes, by repository or SUITE/ID, with sources.
"""

import csv
import functools
import os
import shlex

from metaclip_jax.evaluation import webdataset
from metaclip_jax.evaluation.tasks import BY_LANGUAGE, JACCARD, Task, locate, text

_TRAINING = "train/*"  # files of the hub that no task needs
# Formats of sizes.tsv's kinds: its own listing or archive, that of a copy of the same
# images, and of other images or a part of them.
_KINDS = {
    "listed": "{}",
    "similar": "~{}",
    "estimated": "about {} (estimated)",
    "at least": "more than {}",
}
# What to do where no command gets the images.
_HOW = {
    "xm3600": "unpack google.github.io/crossmodal-3600/web-data/captions.zip into"
    " {data_dir}/xm3600, and open-images-dataset.s3.amazonaws.com/crossmodal-3600/"
    "images.tgz into {data_dir}/xm3600/images",
    "babel": "ImageNet's images, see --tasks=imagenet, and babel_imagenet.json and"
    " nllb_dist13b_prompts.json of `pip install --no-deps clip_benchmark==1.6.2`, or"
    " in {data_dir}/babel_imagenet",
    "clip26/ucf101": "unpack storage.googleapis.com/thumos14_files/UCF101_videos.zip,"
    " and put the frame of each video of testlist01 into {data_dir}/ucf101/CLASS",
    "clip26/kinetics700": "fetch the files that s3.amazonaws.com/kinetics/700_2020/val/"
    "k700_2020_val_path.txt lists, and put the frame of each video into"
    " {data_dir}/kinetics700/CLASS",
    "clip26/hateful_memes": "get the images of dev_seen.jsonl from"
    " hatefulmemeschallenge.com, and put those of label 0 into"
    " {data_dir}/hateful_memes/meme, of label 1 into"
    " '{data_dir}/hateful_memes/hatespeech meme'",
}


@functools.cache
def _sizes() -> dict[str, str]:
    """Returns the size of each set of images."""
    found = {}
    for row in csv.DictReader(text("sizes.tsv").splitlines(), delimiter="\t"):
        megabytes = int(row["megabytes"])
        size = f"{megabytes / 1000:.2g} GB" if megabytes >= 1000 else f"{megabytes} MB"
        found[row["images"]] = _KINDS[row["kind"]].format(size)
    return found


def _key(task: Task) -> str:
    """Returns the key of a task's images in sizes.tsv."""
    if task.suite in BY_LANGUAGE:
        return task.suite
    return task.repo or f"{task.suite}/{task.id}"


def size(task: Task) -> str:
    """Returns the size of a task's download; after "~" it is that of a copy."""
    return _sizes()[_key(task)]


def image_count(task: Task) -> int:
    """Returns the number of images to get; 0 = copies differ."""
    return 50_000 if task.suite == "babel" else task.images  # all of ImageNet's


def missing(task: Task, data_dir: str) -> str:
    """Returns a task's number of images, their size, licence, and how to get them."""
    count = f"{image_count(task):,}" if image_count(task) else "some"
    what = "texts with images" if task.metric == JACCARD else "images"
    return (
        f"{count} {what}, size: {size(task)}, licence: {task.licence}:"
        f" {how(task, data_dir)}"
    )


def how(task: Task, data_dir: str) -> str:
    """Returns the command or instruction for getting a task's images."""
    if _key(task) in _HOW:
        return _HOW[_key(task)].format(data_dir=data_dir)
    folder = shlex.quote(os.path.join(data_dir, task.folder))
    if task.metric == JACCARD:
        return (
            f"with datasets<4, load_dataset({task.repo!r}, split='test',"
            f" revision={task.revision!r}, trust_remote_code=True)"
            f".to_parquet('{data_dir}/{task.folder}/test-00000-of-00001.parquet')"
        )
    if not task.repo:
        builder = task.tfds.partition(":")[0]
        return (
            f"tfds build {builder} --file_format=array_record --data_dir"
            f" {shlex.quote(data_dir)}, where TensorFlow is installed, or put them into"
            f" {data_dir}/{task.id}/CLASS"
        )
    # clip-benchmark's repositories also hold the training sets.
    test = "" if task.repo.endswith("_test") else f" --exclude '{_TRAINING}'"
    return (
        f"hf download {task.repo} --repo-type dataset --revision {task.revision}{test}"
        f" --local-dir {folder}"
    )


def wanted(task: Task, data_dir: str) -> bool:
    """Whether the hub has images of a task that are not there, or not all of them."""
    if not task.is_on_hub:
        return False
    folder = locate(task, data_dir)
    if folder is None:
        return True
    is_download = os.path.basename(folder) == task.folder
    return is_download and not webdataset.is_complete(folder)


def download(task: Task, data_dir: str) -> None:
    """Fetches the images of a task from the hub, at the revision of the table.

    Raises:
      RuntimeError: the download failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot_download(
            task.repo,
            repo_type="dataset",
            revision=task.revision,
            ignore_patterns=_TRAINING,
            local_dir=os.path.join(data_dir, task.folder),
        )
    except (HfHubHTTPError, OSError) as error:
        raise RuntimeError(
            f"{task.repo} could not be downloaded from the Hugging Face hub"
            f" ({type(error).__name__}: {str(error)[:200]}); try again"
        ) from error
