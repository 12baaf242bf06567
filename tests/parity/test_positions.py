"""Resized tables of positions against torch's interpolation and open_clip's own."""

import numpy as np
import pytest
import torch

from metaclip_jax.models import positions


def torch_resize(table, after, **options):
    before = int(len(table) ** 0.5)
    first, rows = table[: len(table) - before**2], table[len(table) - before**2 :]
    grid = torch.tensor(rows.reshape(1, before, before, -1).transpose(0, 3, 1, 2))
    new = torch.nn.functional.interpolate(
        grid, size=(after, after), mode="bicubic", **options
    )
    return np.concatenate([first, new[0].permute(1, 2, 0).reshape(after**2, -1)])


@pytest.mark.parametrize("class_token", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(7, 12), (16, 24), (24, 16), (7, 7)])
def test_both_conventions_equal_torch(before, after, class_token):
    table = np.random.default_rng(0).normal(size=(before**2 + class_token, 6))
    table = table.astype(np.float32)
    for convention, options in (
        ("open_clip", {"antialias": True, "align_corners": False}),
        ("metaclip", {"align_corners": True}),
    ):
        got = positions.resize(table, patches=after**2, convention=convention)
        want = torch_resize(table, after, **options)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_open_clip_resizes_so(open_clip):
    from open_clip.model import resize_pos_embed

    table = torch.tensor(
        np.random.default_rng(0).normal(size=(50, 6)), dtype=torch.float
    )
    state = {"visual.positional_embedding": table}
    model = type("Model", (), {})()
    model.visual = type("Visual", (), {"grid_size": (12, 12)})()
    resize_pos_embed(state, model)
    want = state["visual.positional_embedding"].numpy()
    got = positions.resize(table.numpy(), patches=144, convention="open_clip")
    np.testing.assert_allclose(got, want, atol=1e-5)
