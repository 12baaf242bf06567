"""The quick start's model, small enough to train on two CPU cores in minutes.

    python -m metaclip_jax.train --config=configs/quickstart.py --workdir=DIR

It uses two virtual CPU devices, so that it runs the same sharded code as large runs.
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """Returns the recipe: 48-pixel images, short texts, 4 layers, f32."""
    config = keys.default()
    config.dataset = "quickstart_run/dataset"
    config.tokenizer = "quickstart_run/tokenizer.json"
    config.global_batch = 256
    config.total_steps = 300
    config.log_every_steps = 10
    config.checkpoint_every_steps = 50
    config.image_size = 48
    config.dtype = "float32"  # CPUs have no fast bfloat16
    config.cpu_devices = 2
    config.mesh.data = 2
    config.model.patch_size = 8
    config.model.vision_width = 128
    config.model.vision_layers = 4
    config.model.vision_heads = 2
    config.model.text_width = 128
    config.model.text_layers = 4
    config.model.text_heads = 2
    config.model.context_length = 16
    config.model.embed_dim = 128
    config.model.remat = "dots"  # faster on CPUs, whose memory is slow
    config.optimizer.peak_lr = 1e-3
    # With fewer, the first steps are unstable, and rounding decides how much.
    config.optimizer.warmup_steps = 50
    config.data.read_threads = 2
    return config.lock()
