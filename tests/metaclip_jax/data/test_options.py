"""The options of batches: every key of config.data has a place where it is used."""

import pytest

from metaclip_jax import config as keys
from metaclip_jax.data import images, order
from metaclip_jax.data.options import ELSEWHERE, DataOptions

# Another value of each key that decides what batches hold, with what it needs.
CHANGES = {
    "mixture": {"mixture": (("one", 1.0), ("two", 3.0))},
    "order": {"order": "blocks"},
    "block_records": {"order": "blocks", "block_records": 5},
    "window_blocks": {"order": "blocks", "window_blocks": 5},
    "crop_scale": {"crop_scale": (0.5, 0.75)},
    "flip": {"flip": True},
    "colour": {"colour": 0.25},
    "text_source_weights": {"text_source_weights": (("alt", 2.0),)},
    "synthetic_sources": {"synthetic_sources": ("caption",)},
    "synthetic_share": {"synthetic_sources": ("caption",), "synthetic_share": 0.5},
    "online_t": {"online_t": 20},
    "online_tail_share": {"online_tail_share": 0.06},
    "max_replaced_share": {"max_replaced_share": 0.5},
    "read_threads": {"read_threads": 3},
}


def options(**changes):
    config = keys.default()
    with config.unlocked():
        config.dataset = "" if "mixture" in changes else "folder"
        config.data.update(changes)
    return DataOptions.from_config(config, shared_folder="run/online")


def test_every_key_of_the_data_is_used():
    assert CHANGES.keys() | set(ELSEWHERE) == set(keys.default().data)
    seen = {options()}
    for key, changes in CHANGES.items():
        changed = options(**changes)
        assert changed not in seen, key
        seen.add(changed)


def test_a_key_without_an_option_is_refused():
    with pytest.raises(
        ValueError, match=r"config.data: wanted .* got \['grey'\]; give"
    ):
        options(grey=True)


def test_the_defaults_are_those_of_the_config():
    found, config = options(), keys.default()
    assert found.folders == ("folder",)
    assert found.global_batch == config.global_batch
    assert found.total_steps == config.total_steps
    assert found.context_length == config.model.context_length
    assert found.blocks is None
    assert found.augmentation == images.Augmentation()
    assert not found.balanced_online
    assert found.shared_folder == "run/online"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"online_t": -1}, r"online_tail_share: wanted .* got -1 and 0\.0"),
        ({"online_tail_share": 1.5}, r"wanted .* got 0 and 1\.5"),
        ({"order": "blocks", "block_records": 0}, "at least 1, got 0 and 32"),
        ({"order": "blocks", "window_blocks": 0}, "at least 1, got 256 and 0"),
        ({"crop_scale": (0.5, 0.25)}, r"data\.crop_scale: wanted .* got \(0\.5, 0\.25"),
        ({"colour": 1.0}, r"data\.colour: wanted .* got 1\.0"),
        ({"read_threads": 0}, r"data\.read_threads: wanted at least 1, got 0"),
    ],
)
def test_a_value_out_of_its_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_blocks_are_the_keys_of_the_config():
    found = options(order="blocks", block_records=8, window_blocks=2)
    assert found.blocks == order.Blocks(block_records=8, window_blocks=2)
