"""Every training key: its unit, its default, one comment; below them their ranges.

A recipe in configs/ says which of them differ: a table of variants for `recipe()`, or a
few lines after `default()`. Keys are read by attribute, so that a mistyped name is an
error with a suggestion. docs/config.md is made from this file.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from metaclip_jax.cli import ranges
from metaclip_jax.cli.ranges import Range

if TYPE_CHECKING:
    from metaclip_jax.models.clip import Architecture


def default() -> ConfigDict:
    """Returns all keys, with ViT-B/32 on 400M pairs of the paper as their values."""
    config = ConfigDict()

    # What to train on. Paths are local or gs://.
    config.dataset = ""  # folder that data_prep.curate wrote; see also data.mixture
    config.tokenizer = ""  # tokenizer.json to load
    # Which vocabulary it must have: clip, xlm_v, mt5 or siglip; "" = any. A recipe of a
    # paper names it; metaclip_jax.plan assumes it where no tokenizer is given.
    config.vocabulary = ""
    config.init_from = ""  # model to start from, as metaclip_jax.load takes; "" = new

    # How long, and in which order.
    config.global_batch = 32_768  # pairs a step, over all processes and devices
    config.total_steps = 390_624  # optimizer steps; pairs seen = steps * global_batch
    config.seed = 0  # of the initial parameters, the data order and the crops
    config.microbatches = 1  # parts of a batch that the towers see one by one
    config.patch_dropout = 0.0  # share of an image's patches that a step leaves out
    config.max_skipped_steps = 10  # stop after this many non-finite steps in a row

    # When things happen. The last step always logs and saves.
    config.log_every_steps = 100  # steps between rows of metrics; 0 = never
    config.checkpoint_every_steps = 5_000  # steps between checkpoints; 0 = never
    config.eval_every_steps = 0  # steps between evaluations; 0 = never

    # Numbers and devices.
    config.image_size = 224  # pixels, height and width
    config.dtype = "bfloat16"  # of the towers' matrix products
    config.loss = "softmax"  # CLIP's softmax, or SigLIP's sigmoid
    config.loss_form = "gathered"  # how devices get negatives: gathered or ring
    config.loss_chunk = 1_024  # columns of logits at a time in the ring form
    config.cpu_devices = 0  # virtual CPU devices to make; 0 = use the real devices
    config.compilation_cache = ""  # folder; "" = none; not for several CPU devices

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1 = all that are left
    config.mesh.fsdp = 1  # devices that split the batch and the parameters
    config.mesh.tensor = 1  # devices that split heads and MLP width
    config.mesh.slices = -1  # TPU slices over which mesh.data is split; -1 = all

    config.model = _model()
    config.optimizer = _optimizer()
    config.data = _data()

    config.checkpoint = ConfigDict()
    config.checkpoint.keep_last = 3  # newest checkpoints to keep
    config.checkpoint.keep_every_steps = 0  # also keep multiples of this; 0 = none
    # Also keep the checkpoint that is best by this metric: "evaluation/clip26/cifar10",
    # "evaluation/zero_shot/accuracy", "evaluation/image_to_text/R@1", ...; "" = none.
    config.checkpoint.keep_best = ""
    config.checkpoint.fallback = False  # delete damaged ones, use an older

    config.tensorboard = True  # also write TensorBoard files
    config.wandb = ""  # Weights & Biases project to log to; "" = none

    config.profile = ConfigDict()
    config.profile.first_step = 0  # first step to trace; 0 = none
    config.profile.last_step = 0  # last step to trace; 0 = none

    config.evaluation = ConfigDict()
    config.evaluation.held_out = ""  # dataset folder with zero_shot.json; "" = none
    config.evaluation.tasks = ""  # suites, tasks: "clip26,cifar100"; "" = none
    config.evaluation.data_dir = ""  # folder of the images of tasks
    config.evaluation.batch = 0  # images or texts encoded at a time; 0 = by the device
    config.evaluation.bootstrap_samples = 1_000  # resamples behind each interval
    return config.lock()


def _model() -> ConfigDict:
    """Both towers."""
    model = ConfigDict()
    model.family = "clip"  # of the towers: clip or siglip (MAP head, no causal mask)
    model.patch_size = 32  # pixels
    model.vision_width = 768  # channels
    model.vision_layers = 12  # transformer blocks
    model.vision_heads = 12  # attention heads; vision_width must be a multiple of it
    model.vision_mlp_width = 0  # channels; 0 = 4 * vision_width
    model.text_width = 512  # channels
    model.text_layers = 12  # transformer blocks
    model.text_heads = 8  # attention heads; text_width must be a multiple of it
    model.text_mlp_width = 0  # channels; 0 = 4 * text_width
    model.context_length = 77  # tokens, begin and end marks included
    model.embed_dim = 512  # channels of the shared embedding
    model.activation = "quick_gelu"  # of the MLPs: quick_gelu, gelu or gelu_tanh
    model.text_pool = "eos"  # read at the first "eos", "argmax" of ids, "last" (siglip)
    model.attention = "xla"  # xla, jax (its own gradient, wider weights) or cudnn
    model.layer_norm = "xla"  # xla, or jax (its own gradient)
    model.remat = "none"  # what the backward pass recomputes: none, dots or full
    model.chunk = -1  # rows of a device at a time in a layer; 0 = all, -1 = 32 on TPUs
    model.unroll = False  # compile layers separately, not as a loop; for GPUs
    return model


def _optimizer() -> ConfigDict:
    """AdamW, linear warm-up, cosine to zero."""
    optimizer = ConfigDict()
    optimizer.peak_lr = 5e-4  # learning rate after warm-up
    optimizer.warmup_steps = 2_000  # steps of linear rise from 0
    optimizer.beta1 = 0.9  # decay of the first moment, a step
    optimizer.beta2 = 0.98  # decay of the second moment, a step
    optimizer.epsilon = 1e-6  # added to the root of the second moment
    optimizer.weight_decay = 0.2  # of matrices and tables, a step, times the lr
    optimizer.first_moment_dtype = "float32"  # bfloat16 saves memory
    return optimizer


def _data() -> ConfigDict:
    """The input pipeline of one process."""
    data = ConfigDict()
    # Several datasets instead of config.dataset: ((folder, weight), ...). The
    # weights are relative: (4, 5) means 4/9 and 5/9 of the examples.
    data.mixture = ()
    data.order = "global"  # single records, or "blocks" of them: large reads, for gs://
    data.block_records = 256  # consecutive records that stay together
    data.window_blocks = 32  # blocks shuffled together; best up to a quarter of a batch
    data.crop_scale = (0.9, 1.0)  # least and most share of the image area to crop
    data.flip = False  # mirror half of the images, chosen by hash
    data.colour = 0.0  # most change of brightness, contrast, saturation, as a share
    # How likely the texts of each source are chosen when an epoch shows one text of an
    # image: ((text source, weight), ...); sources that are not named have weight 1.
    data.text_source_weights = ()
    data.synthetic_sources = ()  # text sources whose texts are synthetic
    # How often an image that has both kinds of texts shows a synthetic one, as a share.
    data.synthetic_share = 0.0
    # Accepted draws an entry and epoch, in online balancing of a dataset that holds
    # every matched text; 0 = by online_tail_share.
    data.online_t = 0
    # The tail's share of all matches, in online balancing where online_t is 0; 0 = no
    # online balancing.
    data.online_tail_share = 0.0
    # More undecodable images than this end the run, as a share of all images seen.
    data.max_replaced_share = 0.05
    data.read_threads = 16  # threads that read and decode
    data.worker_count = 0  # loader processes; 0 = threads only
    data.prefetch = 4  # batches made ahead of the step, in each process
    data.device_prefetch = 2  # batches that wait on the devices
    return data


# The values that each key may have. A new key gets a row here, or a test fails:
#   Range(int, least=1)                          bounds: least, most (inclusive), above,
#   Range(float, least=0, below=1)               below (exclusive); floats are finite
#   Range(int, least=1, also=(-1,))              single values beside the range
#   Range(str, choices=("a", "b"))               one of several words
#   Range(str, pattern="[a-z]+", form="...")     a form: an expression, and its words
#   Range(tuple, items=(Range(...), ...))        a tuple of so many items
#   Range(tuple, each=Range(...))                a tuple of any length
# What must hold between keys is in `_rules`.
_ANY_TEXT = Range(str)
_FOLDER = Range(str, pattern=r"(?s).*\S.*", form="a folder")
_SOURCE = Range(str, pattern=r"(?s).*\S.*", form="a text source")
_COUNT = Range(int, least=1)
_COUNT_OR_NONE = Range(int, least=0)
_AXIS = Range(int, least=1, also=(-1,))
_WIDTH = Range(int, least=1, most=2**20)
_SHARE = Range(float, least=0, most=1)

RANGES: dict[str, Range] = {
    "dataset": _ANY_TEXT,
    "tokenizer": _ANY_TEXT,
    "vocabulary": Range(str, choices=("", "clip", "xlm_v", "mt5", "siglip")),
    "init_from": _ANY_TEXT,
    # Steps are counted in 32 bits, and pairs seen in the 53 of a float.
    "global_batch": Range(int, least=1, most=2**22),
    "total_steps": Range(int, least=1, most=2**31 - 1),
    "seed": Range(int, least=0, most=2**32 - 1),  # jax.random takes no more bits
    "microbatches": _COUNT,
    "patch_dropout": Range(float, least=0, below=1),
    "max_skipped_steps": _COUNT,
    "log_every_steps": _COUNT_OR_NONE,
    "checkpoint_every_steps": _COUNT_OR_NONE,
    "eval_every_steps": _COUNT_OR_NONE,
    "image_size": Range(int, least=1, most=65_535),
    "dtype": Range(str, choices=("float32", "bfloat16")),
    "loss": Range(str, choices=("softmax", "sigmoid")),
    "loss_form": Range(str, choices=("gathered", "ring")),
    "loss_chunk": _COUNT,
    "cpu_devices": Range(int, least=0, most=1_024),
    "compilation_cache": _ANY_TEXT,
    "mesh.data": _AXIS,
    "mesh.fsdp": _COUNT,
    "mesh.tensor": _COUNT,
    "mesh.slices": _AXIS,
    "model.family": Range(str, choices=("clip", "siglip")),
    "model.patch_size": Range(int, least=1, most=65_535),
    "model.vision_width": _WIDTH,
    "model.vision_layers": Range(int, least=2, most=1_000),  # the last is not scanned
    "model.vision_heads": _WIDTH,
    "model.vision_mlp_width": Range(int, least=0, most=2**20),
    "model.text_width": _WIDTH,
    "model.text_layers": Range(int, least=2, most=1_000),
    "model.text_heads": _WIDTH,
    "model.text_mlp_width": Range(int, least=0, most=2**20),
    "model.context_length": Range(int, least=3, most=2**20),  # begin, a token, end
    "model.embed_dim": _WIDTH,
    "model.activation": Range(str, choices=("quick_gelu", "gelu", "gelu_tanh")),
    "model.text_pool": Range(str, choices=("eos", "argmax", "last")),
    "model.attention": Range(str, choices=("xla", "jax", "cudnn")),
    "model.layer_norm": Range(str, choices=("xla", "jax")),
    "model.remat": Range(str, choices=("none", "dots", "full")),
    "model.chunk": Range(int, least=-1),
    "model.unroll": Range(bool),
    "optimizer.peak_lr": Range(float, above=0),
    "optimizer.warmup_steps": _COUNT_OR_NONE,
    # Within 32 bits: 1 - beta and epsilon must not vanish there.
    "optimizer.beta1": Range(float, least=0, most=0.999999),
    "optimizer.beta2": Range(float, least=0, most=0.999999),
    "optimizer.epsilon": Range(float, least=1e-30),
    "optimizer.weight_decay": Range(float, least=0),
    "optimizer.first_moment_dtype": Range(str, choices=("float32", "bfloat16")),
    "data.mixture": Range(
        tuple,
        each=Range(
            tuple, items=(_FOLDER, Range(float, above=0, form="a weight above 0"))
        ),
    ),
    "data.order": Range(str, choices=("global", "blocks")),
    "data.block_records": Range(int, least=1, most=2**20),
    "data.window_blocks": Range(int, least=1, most=2**20),
    "data.crop_scale": Range(
        tuple,
        items=(
            Range(float, above=0, most=1, form="least share above 0"),
            Range(float, above=0, most=1, form="most share of at most 1"),
        ),
    ),
    "data.flip": Range(bool),
    "data.colour": Range(float, least=0, below=1),
    "data.text_source_weights": Range(
        tuple,
        each=Range(
            tuple,
            items=(_SOURCE, Range(float, least=0, form="a weight of at least 0")),
        ),
    ),
    "data.synthetic_sources": Range(tuple, each=_SOURCE),
    "data.synthetic_share": _SHARE,
    "data.online_t": _COUNT_OR_NONE,
    "data.online_tail_share": _SHARE,
    "data.max_replaced_share": _SHARE,
    "data.read_threads": Range(int, least=1, most=1_024),
    "data.worker_count": Range(int, least=0, most=1_024),
    "data.prefetch": Range(int, least=0, most=1_000),
    "data.device_prefetch": Range(int, least=0, most=100),
    "checkpoint.keep_last": _COUNT,
    "checkpoint.keep_every_steps": _COUNT_OR_NONE,
    "checkpoint.keep_best": _ANY_TEXT,
    "checkpoint.fallback": Range(bool),
    "tensorboard": Range(bool),
    "wandb": _ANY_TEXT,
    "profile.first_step": _COUNT_OR_NONE,
    "profile.last_step": _COUNT_OR_NONE,
    "evaluation.held_out": _ANY_TEXT,
    "evaluation.tasks": _ANY_TEXT,
    "evaluation.data_dir": _ANY_TEXT,
    "evaluation.batch": _COUNT_OR_NONE,
    "evaluation.bootstrap_samples": Range(int, least=1, most=1_000_000),
}


def check(config: ConfigDict) -> None:
    """Refuses a config with values that cannot be meant, before anything is started.

    Raises:
        ValueError: names all keys that are wrong: want, got, cure.
    """
    ranges.check(config, table=RANGES, default=default(), rules=_rules)


def _rules(config: ConfigDict) -> list[ranges.Rule]:
    """Returns the rules between keys; each key by itself is in its range."""
    return [*_rules_of_the_model(config), *_rules_of_the_run(config)]


def _rules_of_the_model(config: ConfigDict) -> list[ranges.Rule]:
    model, size, patch = config.model, config.image_size, config.model.patch_size
    patches = (size // patch) ** 2
    return [
        (
            "image_size",
            size % patch == 0,
            f"a multiple of config.model.patch_size={patch}; nearest:"
            f" {max(round(size / patch), 1) * patch}",
        ),
        (
            "patch_dropout",
            size % patch > 0 or round(patches * (1 - config.patch_dropout)) >= 1,
            f"at least one of the {patches} patches of an image left; lower it",
        ),
        *(
            (
                f"model.{tower}_width",
                model[f"{tower}_width"] % model[f"{tower}_heads"] == 0,
                f"a multiple of config.model.{tower}_heads={model[f'{tower}_heads']};"
                " CLIP's heads have 64 channels",
            )
            for tower in ("vision", "text")
        ),
        (
            "model.text_pool",
            (model.family == "siglip") == (model.text_pool == "last"),
            f"'last' where config.model.family={model.family!r} is 'siglip', and only"
            " there",
        ),
        (
            "model.embed_dim",
            model.family != "siglip" or model.embed_dim == model.vision_width,
            f"config.model.vision_width={model.vision_width}, as SigLIP's image tower"
            " has no projection",
        ),
    ]


def _rules_of_the_run(config: ConfigDict) -> list[ranges.Rule]:
    data, total, every = config.data, config.total_steps, config.eval_every_steps
    first, last = config.profile.first_step, config.profile.last_step
    judged = bool(config.checkpoint.keep_best)
    evaluated = bool((config.evaluation.held_out or config.evaluation.tasks) and every)
    named = [source for source, _ in data.text_source_weights]
    return [
        (
            "optimizer.warmup_steps",
            config.optimizer.warmup_steps < total,
            f"fewer than config.total_steps={total}; try {total // 10}",
        ),
        (
            "eval_every_steps",
            evaluated or not every,
            "images to evaluate on; give config.evaluation.held_out or .tasks, or 0",
        ),
        (
            "checkpoint.keep_best",
            evaluated or not judged,
            "scores to judge by; give config.evaluation and config.eval_every_steps",
        ),
        (
            "evaluation.data_dir",
            bool(config.evaluation.data_dir) == bool(config.evaluation.tasks),
            "the folder of the images where there are config.evaluation.tasks",
        ),
        (
            "checkpoint_every_steps",
            not (judged and evaluated) or config.checkpoint_every_steps % every == 0,
            f"a multiple of config.eval_every_steps={every}, as config.checkpoint."
            "keep_best judges a checkpoint when it is saved",
        ),
        (
            "profile.first_step",
            first == last == 0 or 1 <= first <= last <= total,
            f"1 <= first_step <= last_step={last} <= total_steps={total}, or 0 and 0"
            " for no profile",
        ),
        (
            "data.crop_scale",
            data.crop_scale[0] <= data.crop_scale[1],
            "the least share of the image's area first, then the most",
        ),
        (
            "data.text_source_weights",
            len(set(named)) == len(named),
            "each text source once",
        ),
        (
            "data.synthetic_share",
            not data.synthetic_share or len(data.synthetic_sources) > 0,
            "the text sources that are synthetic; give config.data.synthetic_sources",
        ),
    ]


def recipe(variants: Mapping[str, Mapping[str, Any]], variant: str) -> ConfigDict:
    """Returns the config of one variant, read in blocks, for a recipe in configs/.

    Args:
      variants: by name the values by dotted key that differ from the defaults; under
        "preset" the released model (models/presets.py) that is trained.
      variant: its name, what follows the colon in --config=configs/FILE.py:VARIANT.

    Raises:
      ValueError: there is no such variant or key; names the nearest.
    """
    from metaclip_jax.models import presets

    values = {"data.order": "blocks", **ranges.variant(variants, variant)}
    config = default()
    ranges.update(config, presets.config_values(values.pop("preset")))
    ranges.update(config, values)
    return config


def of_architecture(wanted: "Architecture") -> ConfigDict:
    """Returns the default config with the keys that give this architecture."""
    config = default()
    with config.unlocked():
        config.image_size = wanted.image_size
        config.loss = "sigmoid" if wanted.logit_bias else "softmax"
        for key in config.model:
            config.model[key] = wanted.__dict__[key]
    return config.lock()


def architecture(
    config: ConfigDict, *, vocab_size: int, eos_id: int, pad_id: int
) -> "Architecture":
    """Returns the model's shape as plain values; the ids come from the tokenizer."""
    # Here and not above, so that reading a recipe does not load jax.
    from metaclip_jax.models.clip import Architecture

    model = config.model.to_dict()
    for tower in ("vision", "text"):
        key = f"{tower}_mlp_width"
        model[key] = model[key] or 4 * model[f"{tower}_width"]
    return Architecture(
        **model,
        logit_bias=config.loss == "sigmoid",
        image_size=config.image_size,
        dtype=config.dtype,
        vocab_size=vocab_size,
        eos_id=eos_id,
        pad_id=pad_id,
    )
