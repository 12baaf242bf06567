"""Ours against transformers' SigLIP: the same weights give the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from metaclip_jax import convert
from metaclip_jax.conversion import huggingface
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.inference import loading
from metaclip_jax.inference import model as inference
from metaclip_jax.models import clip

TEXT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 150,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def model():
    """A random model; weights large enough to matter."""
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def test_embeddings_and_logits_agree(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = loading.load(tmp_path)
    a, params = loaded.architecture, loaded.params
    assert (a.family, a.text_pool, a.activation) == ("siglip", "last", "gelu_tanh")
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(0, 150, (5, 16)).astype(np.int32)
    with torch.no_grad():
        want = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
        )
    image = jax.jit(lambda p, x: clip.encode_image(a, p, x))(params, pixels)
    text = jax.jit(lambda p, x: clip.encode_text(a, p, x))(params, tokens)
    logits = jnp.exp(params["log_logit_scale"]) * image @ text.T + params["logit_bias"]
    np.testing.assert_allclose(image, want.image_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(text, want.text_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(logits, want.logits_per_image.numpy(), atol=1e-4)


def test_there_and_back_again_is_bit_equal_and_opens_in_transformers(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    loaded = loading.load(tmp_path / "a")
    convert.convert(loaded, "huggingface", str(tmp_path / "b"))
    again = loading.load(tmp_path / "b")
    assert again.architecture == loaded.architecture
    opened = transformers.AutoModel.from_pretrained(tmp_path / "b")
    assert type(opened) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, opened.state_dict()[name]), name
    with pytest.raises(ValueError, match="timm"):
        convert.convert(loaded, "open_clip", str(tmp_path / "c"))


def test_the_released_base_model_is_the_default_of_both():
    """google/siglip-base-patch16-224 has the class defaults of transformers."""
    config = transformers.SiglipConfig()
    architecture = huggingface.read_architecture(config.to_dict())
    with torch.device("meta"):
        theirs = transformers.SiglipModel(config)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert clip.parameter_count(architecture)["total"] == count
    shapes = jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
    rules = huggingface.rules(architecture)
    assert {rule.ours for rule in rules} == set(loading.flat_params(shapes))


def test_answers_of_a_folder_are_theirs(model, tmp_path):
    """With a tokenizer of ours, whose marks the config then names."""
    path = tmp_path / "own.json"
    path.write_text(train_tokenizer(["red cat", "blue dog"] * 3, 600).to_str())
    tokenizer = load_tokenizer(path, family="clip")
    torch.manual_seed(1)
    config = transformers.SiglipConfig(
        text_config=TEXT
        | {
            "vocab_size": tokenizer.vocab_size,
            "pad_token_id": tokenizer.pad_id,
            "eos_token_id": tokenizer.eos_id,
        },
        vision_config=VISION,
    )
    theirs = transformers.SiglipModel(config).eval()
    theirs.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text(path.read_text())
    convert.convert(
        loading.load(tmp_path / "a"), "huggingface", str(tmp_path / "exported")
    )
    ours = inference.load(tmp_path / "exported")
    labels = ["red cat", "blue dog", "a house"]
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(
        tmp_path / "exported"
    )
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")(
        labels, padding="max_length", max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        out = theirs(
            input_ids=encoded["input_ids"],
            pixel_values=processor(picture, return_tensors="pt")["pixel_values"],
        )
    found = ours.classify([picture], labels, templates=["{}"])
    assert ours.probability == "sigmoid"
    np.testing.assert_allclose(
        found.probabilities, out.logits_per_image.sigmoid().numpy(), atol=1e-4
    )
