"""Every training key: its unit, its default, one comment. The only home of defaults.

A recipe in configs/ starts from `default()`, changes a few keys and returns the
locked result. Keys are read by attribute only, so that a mistyped name is an error
with a suggestion. Below the commands, functions take values and never a config.
"""

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

if TYPE_CHECKING:
    from metaclip_jax.models.clip import Architecture


def default() -> ConfigDict:
    """Returns all keys, with ViT-B/32 on 400M pairs of the paper as their values."""
    config = ConfigDict()

    # What to train on. Paths are local or gs://.
    config.dataset = ""  # dataset folder, as data_prep.curate writes it; see also data
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

    # When things happen, in steps. 0 = never (the last step always saves and logs).
    config.log_every_steps = 100
    config.checkpoint_every_steps = 5_000
    config.eval_every_steps = 0  # on evaluation.held_out

    # Numbers and devices.
    config.image_size = 224  # pixels, height and width
    config.dtype = "bfloat16"  # of the towers' matrix products: float32 or bfloat16
    config.loss = "softmax"  # "softmax" (CLIP) or "sigmoid" (SigLIP)
    config.loss_form = "gathered"  # how negatives meet: "gathered" or "ring"
    config.loss_chunk = 1_024  # columns of logits at a time in the ring form
    config.cpu_devices = 0  # virtual CPU devices to make; 0 = use the real devices
    # Folder for compiled programs; "" = none. Several CPU devices do without.
    config.compilation_cache = ""

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1 = all that are left
    config.mesh.fsdp = 1  # devices that split the batch and the parameters
    config.mesh.tensor = 1  # devices that split heads and MLP width
    config.mesh.slices = -1  # TPU slices, among data; -1 = as many as there are

    config.model = _model()
    config.optimizer = _optimizer()
    config.data = _data()

    config.checkpoint = ConfigDict()
    config.checkpoint.keep_last = 3  # newest checkpoints to keep
    config.checkpoint.keep_every_steps = 0  # also keep multiples of this; 0 = none
    # Also keep the checkpoint that is best by this metric of the held-out images:
    # "evaluation/zero_shot/accuracy", "evaluation/image_to_text/R@1", ...; "" = none.
    config.checkpoint.keep_best = ""

    config.tensorboard = True  # also write TensorBoard files
    config.wandb = ""  # Weights & Biases project to log to; "" = none

    config.profile = ConfigDict()
    config.profile.first_step = 0  # trace this step and those up to the last; 0 = none
    config.profile.last_step = 0

    config.evaluation = ConfigDict()
    config.evaluation.held_out = ""  # dataset folder with zero_shot.json; "" = none
    config.evaluation.batch = 256  # images or texts encoded at a time
    config.evaluation.bootstrap_samples = 1_000  # resamples behind each interval

    return config.lock()


def _model() -> ConfigDict:
    """Both towers. Heads must divide their tower's width."""
    model = ConfigDict()
    model.family = "clip"  # of the towers: clip or siglip (MAP head, no causal mask)
    model.patch_size = 32  # pixels
    model.vision_width = 768  # channels
    model.vision_layers = 12
    model.vision_heads = 12
    model.vision_mlp_width = 0  # channels; 0 = 4 * vision_width
    model.text_width = 512  # channels
    model.text_layers = 12
    model.text_heads = 8
    model.text_mlp_width = 0  # channels; 0 = 4 * text_width
    model.context_length = 77  # tokens, begin and end marks included
    model.embed_dim = 512  # channels of the shared embedding
    model.activation = "quick_gelu"  # of the MLPs: quick_gelu, gelu or gelu_tanh
    model.text_pool = "eos"  # read at the first "eos", "argmax" of ids, "last" (siglip)
    model.attention = "xla"  # implementation: xla or cudnn
    model.remat = "none"  # what the backward pass recomputes: none, dots or full
    return model


def _optimizer() -> ConfigDict:
    """AdamW, linear warm-up, cosine to zero."""
    optimizer = ConfigDict()
    optimizer.peak_lr = 5e-4  # learning rate after warm-up
    optimizer.warmup_steps = 2_000
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.98
    optimizer.epsilon = 1e-6
    optimizer.weight_decay = 0.2  # on matrices and tables, see optimizer.py
    optimizer.first_moment_dtype = "float32"  # or bfloat16, to save memory
    return optimizer


def _data() -> ConfigDict:
    """The input pipeline of one process."""
    data = ConfigDict()
    # Several datasets instead of config.dataset: ((folder, weight), ...), where weights
    # are shares of the examples up to a factor.
    data.mixture = ()
    data.order = "global"  # any record anywhere, or "blocks": large reads, for gs://
    data.block_records = 128  # consecutive records that stay together
    data.window_blocks = 64  # blocks shuffled together: at most a quarter of a batch
    data.crop_scale = (0.9, 1.0)  # least and most share of the image area to crop
    data.flip = False  # mirror every second image
    data.colour = 0.0  # most change of brightness, contrast, saturation, as a share
    # Which text of an image an epoch shows: ((text source, weight), ...), 1 if not
    # named; and how often a synthetic one, of the sources named, for images with both.
    data.text_source_weights = ()
    data.synthetic_sources = ()
    data.synthetic_share = 0.0
    # Online balancing of a dataset that holds every matched text: accepted draws an
    # entry and epoch, or the tail's share of all matches; both 0 = as it is.
    data.online_t = 0
    data.online_tail_share = 0.0
    data.max_replaced_share = 0.05  # more undecodable images than this end the run
    data.read_threads = 16  # threads that read and decode
    data.worker_count = 0  # loader processes; 0 = threads only
    data.prefetch = 4  # batches made ahead of the step, in each process
    data.device_prefetch = 2  # batches that wait on the devices
    return data


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

    model = config.model
    return Architecture(
        family=model.family,
        logit_bias=config.loss == "sigmoid",
        image_size=config.image_size,
        patch_size=model.patch_size,
        vision_width=model.vision_width,
        vision_layers=model.vision_layers,
        vision_heads=model.vision_heads,
        vision_mlp_width=model.vision_mlp_width or 4 * model.vision_width,
        text_width=model.text_width,
        text_layers=model.text_layers,
        text_heads=model.text_heads,
        text_mlp_width=model.text_mlp_width or 4 * model.text_width,
        context_length=model.context_length,
        vocab_size=vocab_size,
        embed_dim=model.embed_dim,
        activation=model.activation,
        text_pool=model.text_pool,
        eos_id=eos_id,
        pad_id=pad_id,
        dtype=config.dtype,
        attention=model.attention,
        remat=model.remat,
    )
