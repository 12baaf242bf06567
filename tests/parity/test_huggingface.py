"""Ours against transformers: the same weights give the same embeddings and logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from metaclip_jax import convert
from metaclip_jax.conversion import huggingface, weights
from metaclip_jax.inference import loading
from metaclip_jax.models import clip

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 150,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 149,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


def make(kind="clip", *, activation="quick_gelu", seed=0, **text):
    """A random transformers model; weights large enough to matter."""
    torch.manual_seed(seed)
    config_class, model_class = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "metaclip_2": (transformers.MetaClip2Config, transformers.MetaClip2Model),
    }[kind]
    config = config_class(
        text_config=TEXT | {"hidden_act": activation} | text,
        vision_config=VISION | {"hidden_act": activation},
        projection_dim=40,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def texts(vocab_size, eos, *, rows=5, length=16, seed=0):
    """Rows with one end mark somewhere, noise behind it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, vocab_size - 1, (rows, length)).astype(np.int32)
    tokens[tokens == eos] = 3
    tokens[np.arange(rows), rng.integers(1, length, rows)] = eos
    return tokens


def images(size, *, rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, size, size, 3)).astype(np.float32)


def theirs(model, pixels, tokens):
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
        )
    return (
        out.image_embeds.numpy(),
        out.text_embeds.numpy(),
        out.logits_per_image.numpy(),
    )


def ours(loaded, pixels, tokens):
    a, params = loaded.architecture, loaded.params
    image = jax.jit(lambda p, x: clip.encode_image(a, p, x))(params, pixels)
    text = jax.jit(lambda p, x: clip.encode_text(a, p, x))(params, tokens)
    logits = jnp.exp(params["log_logit_scale"]) * image @ text.T
    return np.asarray(image), np.asarray(text), np.asarray(logits)


def assert_equal_models(model, loaded, pixels, tokens, *, tolerance=1e-4):
    for want, got in zip(
        theirs(model, pixels, tokens), ours(loaded, pixels, tokens), strict=True
    ):
        # Logits are the cosines times up to a hundred.
        np.testing.assert_allclose(got, want, atol=tolerance * max(1, abs(want).max()))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["clip", "metaclip_2"])
def test_embeddings_and_logits_agree(kind, activation, tmp_path):
    model = make(kind, activation=activation)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = loading.load(tmp_path)
    assert loaded.architecture.activation == activation
    tokens = texts(150, 149)
    assert_equal_models(model, loaded, images(32), tokens)


def test_activations_matter(tmp_path):
    """So that agreement above is not by chance."""
    model = make(activation="gelu")
    model.save_pretrained(tmp_path)
    loaded = loading.load(tmp_path)
    other = loading.Loaded(
        **{
            **loaded.__dict__,
            "architecture": loaded.architecture.__class__(
                **loaded.architecture.__dict__ | {"activation": "quick_gelu"}
            ),
        }
    )
    with pytest.raises(AssertionError):
        assert_equal_models(model, other, images(32), texts(150, 149))


def test_the_first_of_several_end_marks_counts_and_none_is_position_0(tmp_path):
    model = make("metaclip_2", eos_token_id=2)
    model.save_pretrained(tmp_path)
    loaded = loading.load(tmp_path)
    tokens = texts(150, 2)
    tokens[0, 3] = tokens[0, 7] = 2
    tokens[1][tokens[1] == 2] = 3
    assert loaded.architecture.text_pool == "eos"
    assert_equal_models(model, loaded, images(32), tokens)


def test_an_end_mark_of_2_means_the_largest_id_in_clip_only(tmp_path):
    model = make("clip", eos_token_id=2)
    model.save_pretrained(tmp_path)
    loaded = loading.load(tmp_path)
    assert loaded.architecture.text_pool == "argmax"
    assert_equal_models(model, loaded, images(32), texts(150, 149))


@pytest.mark.parametrize("eos_token_id", [2, 149])
def test_padding_with_0_and_with_the_end_mark_is_one(eos_token_id, tmp_path):
    """CLIP pads with 0, transformers' tokenizer with the end mark."""
    model = make("clip", eos_token_id=eos_token_id)
    model.save_pretrained(tmp_path)
    loaded = loading.load(tmp_path)
    ends = texts(150, 149)
    behind = np.arange(16) > (ends == 149).argmax(axis=1)[:, None]
    padded = [np.where(behind, pad, ends).astype(np.int32) for pad in (0, 149)]
    pixels = images(32)
    for tokens in padded:
        assert_equal_models(model, loaded, pixels, tokens)
    first, second = (ours(loaded, pixels, tokens)[1] for tokens in padded)
    np.testing.assert_array_equal(first, second)


def test_a_projection_dim_of_the_top_level_alone_is_used():
    """MetaCLIP's configs leave the sub-configs at their default of 512."""
    config = make().config.to_dict()
    for part in ("text_config", "vision_config"):
        config[part]["projection_dim"] = 512
    assert huggingface.read_architecture(config).embed_dim == 40


@pytest.mark.parametrize("kind", ["clip", "metaclip_2"])
def test_there_and_back_again_is_bit_equal_and_opens_in_transformers(kind, tmp_path):
    eos = {"clip": 149, "metaclip_2": 2}[kind]
    model = make(kind, eos_token_id=eos)
    model.save_pretrained(tmp_path / "a")
    loaded = loading.load(tmp_path / "a")
    convert.convert(loaded, "huggingface", str(tmp_path / "b"))
    again = loading.load(tmp_path / "b")
    first, second = (loading.flat_params(m.params) for m in (loaded, again))
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)
    assert again.architecture == loaded.architecture
    opened = transformers.AutoModel.from_pretrained(tmp_path / "b")
    assert type(opened) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, opened.state_dict()[name]), name


@pytest.mark.slow
def test_full_size_models_agree():
    """ViT-B/32 and ViT-L/14 as released, with random weights."""
    for vision, text, embed_dim in (
        (
            {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 32},
            {"hidden_size": 512, "num_attention_heads": 8},
            512,
        ),
        (
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "patch_size": 14,
            },
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            768,
        ),
    ):
        config = transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=embed_dim
        )
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
        architecture = huggingface.read_architecture(config.to_dict())
        source = weights.of_torch("theirs", model.state_dict())
        loaded = loading.Loaded(
            name="random",
            architecture=architecture,
            params=loading.read_params(source, architecture),
            tokenizer=None,
            preprocess=loading.Preprocess(224, squash=False),
        )
        tokens = texts(49_408, 49_407, rows=2, length=77)
        assert_equal_models(model, loaded, images(224, rows=2), tokens)


def test_missing_and_left_over_weights_are_listed(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["stranger.weight"] = state.pop("text_projection.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing text_proj.*left over stranger"):
        loading.load(tmp_path)


def test_weights_of_another_size_are_refused(tmp_path):
    make().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"vocab_size": 150', '"vocab_size": 151')
    )
    with pytest.raises(
        ValueError, match=r"text/token_embedding \[151, 64\].* got \[150, 64\]"
    ):
        loading.load(tmp_path)


def test_torch_files_need_trust_for_more_than_tensors(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    plain = {f"_orig_mod.module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": plain}, tmp_path / "pytorch_model.bin")
    tokens = texts(150, 149)
    assert_equal_models(model, loading.load(tmp_path), images(32), tokens)
    torch.save(
        {"state_dict": plain, "args": _Hostile()}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(ValueError, match="may run the author.s code"):
        loading.load(tmp_path)
    assert not _Hostile.ran
    trusted = loading.load(tmp_path, trust_pickle=True)
    assert_equal_models(model, trusted, images(32), tokens)


class _Hostile:
    """Runs something when it is unpickled."""

    ran = False

    def __reduce__(self):
        return _run, ()


def _run():
    _Hostile.ran = True
    return 0


def test_bfloat16_weights_are_read_as_their_values(tmp_path):
    model = make().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = loading.load(tmp_path)
    assert_equal_models(model.float(), loaded, images(32), texts(150, 149))
