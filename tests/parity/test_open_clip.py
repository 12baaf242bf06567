"""Ours against open_clip: the same weights give the same embeddings and logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metaclip_jax import convert
from metaclip_jax.conversion import table, weights
from metaclip_jax.inference import loading
from metaclip_jax.models import clip, presets

CONFIG = {
    "model_cfg": {
        "embed_dim": 40,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 48,
            "head_width": 16,
            "patch_size": 8,
            "mlp_ratio": 1.6667,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 150,
            "width": 64,
            "heads": 4,
            "layers": 3,
        },
    },
    "preprocess_cfg": {},
}


def make(open_clip, folder, **text):
    """A random open_clip model in `folder`, as the library opens it."""
    config = json.loads(json.dumps(CONFIG))
    config["model_cfg"]["text_cfg"] |= text
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.CLIP(**config["model_cfg"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    weights.write_folder(
        folder,
        ((name, tensor.numpy()) for name, tensor in model.state_dict().items()),
        name="open_clip_model.safetensors",
    )
    return model


def assert_equal_models(model, loaded, *, eos):
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 148, (5, 16)).astype(np.int32)
    tokens[np.arange(5), rng.integers(1, 16, 5)] = eos
    pixels = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        image, text, scale = model(
            torch.tensor(pixels.transpose(0, 3, 1, 2)),
            torch.tensor(tokens, dtype=torch.long),
        )[:3]
    a, params = loaded.architecture, loaded.params
    got_image = jax.jit(lambda p, x: clip.encode_image(a, p, x))(params, pixels)
    got_text = jax.jit(lambda p, x: clip.encode_text(a, p, x))(params, tokens)
    np.testing.assert_allclose(got_image, image.numpy(), atol=1e-4)
    np.testing.assert_allclose(got_text, text.numpy(), atol=1e-4)
    np.testing.assert_allclose(
        jnp.exp(params["log_logit_scale"]), scale.numpy(), rtol=1e-5
    )


def test_embeddings_agree_and_the_way_back_is_bit_equal(open_clip, tmp_path):
    model = make(open_clip, tmp_path / "a")
    loaded = loading.load(tmp_path / "a")
    assert_equal_models(model, loaded, eos=149)
    convert.convert(loaded, "open_clip", str(tmp_path / "b"))
    again = loading.load(tmp_path / "b")
    assert again.architecture == loaded.architecture
    opened = open_clip.create_model(f"local-dir:{tmp_path / 'b'}")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, opened.state_dict()[name]), name


def test_worldwide_models_read_the_first_end_mark(open_clip, tmp_path):
    model = make(open_clip, tmp_path / "a", pool_type="eos", eos_id=2)
    loaded = loading.load(tmp_path / "a")
    assert loaded.architecture.text_pool == "eos" and loaded.architecture.eos_id == 2
    assert_equal_models(model, loaded, eos=2)


def test_what_ours_do_not_have_is_refused(open_clip, tmp_path):
    make(open_clip, tmp_path / "a", no_causal_mask=True)
    with pytest.raises(ValueError, match="no_causal_mask"):
        loading.load(tmp_path / "a")


def test_open_clip_knows_the_released_models_by_the_same_numbers(open_clip):
    """The presets against open_clip's own configurations."""
    from metaclip_jax.conversion import open_clip as conversion

    for preset, name in (
        ("vit_b32", "ViT-B-32-quickgelu"),
        ("vit_b16", "ViT-B-16-quickgelu"),
        ("vit_l14", "ViT-L-14-quickgelu"),
        ("vit_l14_336", "ViT-L-14-336-quickgelu"),
        ("vit_h14", "ViT-H-14-quickgelu"),
        ("vit_h14_altogether", "ViT-H-14"),
        ("vit_h14_worldwide", "ViT-H-14-worldwide-quickgelu"),
        ("vit_h14_378_worldwide", "ViT-H-14-worldwide-378"),
        ("vit_bigg14_worldwide", "ViT-bigG-14-worldwide"),
        ("vit_bigg14_378_worldwide", "ViT-bigG-14-worldwide-378"),
    ):
        config = open_clip.get_model_config(name)
        theirs = conversion.read_architecture(config)
        ours = presets.architecture(preset)
        for field in ours.__dataclass_fields__:
            if field not in ("text_pool", "pad_id"):
                assert getattr(ours, field) == getattr(theirs, field), (name, field)


def test_both_formats_hold_the_same_leaves():
    from metaclip_jax.conversion import huggingface
    from metaclip_jax.conversion import open_clip as conversion

    architecture = presets.architecture("vit_s16_worldwide")
    shapes = jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
    leaves = set(loading.flat_params(shapes))
    for module in (huggingface, conversion):
        rules = module.rules(architecture)
        assert {rule.ours for rule in rules} == leaves
        assert len({name for rule in rules for name in rule.theirs}) == sum(
            len(rule.theirs) for rule in rules
        )
        assert any(table.LAYER in rule.theirs[0] for rule in rules)
