"""Writes labelled images in the layouts that evaluation reads."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def npy(values):
    out = io.BytesIO()
    np.save(out, np.array(values))
    return out.getvalue()


def write_tar(path, samples):
    """Writes {name: bytes} as a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_webdataset(root, images, rows, class_names, *, ending="cls"):
    """Writes two tar files as the hub has them; `rows` is each KEY.cls's content."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classnames.txt").write_text("\n".join(class_names) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    half = len(images) // 2
    for number, part in enumerate((range(half), range(half, len(images)))):
        samples = {}
        for n in part:
            samples[f"s{n:05d}.png"] = images[n]
            samples[f"s{n:05d}.{ending}"] = rows[n]
        write_tar(root / "test" / f"{number}.tar", samples)
    return str(root)


def write_parquet(root, images, label, features, *, name="label"):
    (root / "data").mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(images)), 2)):
        table = pa.table(
            {
                "image": [{"bytes": images[n], "path": f"{n}.png"} for n in part],
                name: [label[n] for n in part],
            }
        )
        described = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
        path = root / "data" / f"test-{number:05d}-of-00002.parquet"
        pq.write_table(table, path, row_group_size=17)
    return str(root)


def write_tfds(root, images, labels, names):
    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        code_path = None

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(names=names),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for n, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield n, {"image": io.BytesIO(image), "label": label}

    Mnist(data_dir=str(root), file_format="array_record").download_and_prepare()
    return str(root)
