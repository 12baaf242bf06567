"""What the train-step benchmarks share: batches, configs, torch's models.

A step is forward, loss, backward and AdamW on one random batch that is already on the
device. The model is CLIP of given sizes, with CLIP's vocabulary and context.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from metaclip_jax import config as keys
from metaclip_jax.models import presets

VOCABULARY, CONTEXT, EOS = 49_408, 77, 49_407


def make_batch(*, batch: int, size: int) -> dict[str, np.ndarray]:
    """Returns random images and texts; each text ends with EOS."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40_000, (batch, CONTEXT), dtype=np.int32)
    tokens[:, -1] = EOS
    images = rng.integers(0, 255, (batch, size, size, 3), dtype=np.uint8)
    return {"image": images, "tokens": tokens}


def config_of(towers: presets.Towers, *, batch: int, size: int) -> ConfigDict:
    """Returns the config of a run that trains these towers in bf16."""
    config = keys.default()
    config.global_batch, config.image_size = batch, size
    config.total_steps = 100_000
    config.model.patch_size = towers.patch
    config.model.embed_dim = towers.embed_dim
    for name, sizes in (("vision", towers.vision), ("text", towers.text)):
        for what, number in zip(("width", "layers", "heads"), sizes, strict=True):
            config.model[f"{name}_{what}"] = number
    return config


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def transformers_model(towers: presets.Towers, *, size: int) -> Any:
    """Returns a new CLIPModel of transformers with these sizes."""
    import transformers

    transformers.logging.set_verbosity_error()

    def tower(sizes: tuple[int, int, int]) -> dict[str, int]:
        width, layers, heads = sizes
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": towers.embed_dim,
        }

    vision = {"image_size": size, "patch_size": towers.patch}
    text = {"vocab_size": VOCABULARY, "eos_token_id": EOS, "pad_token_id": 0}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=tower(towers.vision) | vision,
            text_config=tower(towers.text) | text,
            projection_dim=towers.embed_dim,
        )
    )


def open_clip_model(towers: presets.Towers, *, size: int) -> Any:
    """Returns a new CLIP of open_clip with these sizes."""
    from open_clip import model

    vision_width, vision_layers, vision_heads = towers.vision
    text_width, text_layers, text_heads = towers.text
    return model.CLIP(
        towers.embed_dim,
        model.CLIPVisionCfg(
            image_size=size,
            patch_size=towers.patch,
            width=vision_width,
            layers=vision_layers,
            head_width=vision_width // vision_heads,
        ),
        model.CLIPTextCfg(
            context_length=CONTEXT,
            vocab_size=VOCABULARY,
            width=text_width,
            layers=text_layers,
            heads=text_heads,
        ),
        quick_gelu=True,
    )


def torch_library() -> str:
    """Returns the fastest library installed that has CLIP in torch; "" if none."""
    there = [
        name
        for name in ("open_clip", "transformers")
        if importlib.util.find_spec("torch") and importlib.util.find_spec(name)
    ]
    if "open_clip" in there and not importlib.util.find_spec("torchvision"):
        there.remove("open_clip")  # its import needs torchvision
    return there[0] if there else ""


def optimizer_of(model: Any, **options: Any) -> Any:
    """Returns torch's AdamW over a model's parameters, with the recipe's values."""
    import torch

    return torch.optim.AdamW(
        model.parameters(),
        lr=5e-4,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.2,
        **options,
    )
