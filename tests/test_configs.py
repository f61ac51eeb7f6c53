"""The configurations that are shipped: each loads, names a sampler that exists, and says what it was tried on."""

import re
from pathlib import Path

import pytest

from proxy.config import load_config
from proxy.upstreams import DIALECTS
from seedproof import check_contracts

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = sorted((CONFIGS / "upstreams").glob("*.toml"))
SECRETS = {"SEEDPROOF_SEED_SECRET": "s" * 32}


class AnyKey(dict):
    """An environment with a value for every name."""

    def __missing__(self, name):
        return SECRETS.get(name, "key")

    def get(self, name, default=None):
        return self[name]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_and_names_a_sampler_that_exists(preset):
    config = load_config(preset, AnyKey())
    check_contracts(config)
    (upstream,) = config.upstreams
    assert upstream.models
    assert (upstream.api_key is None) == upstream.base_url.startswith("http://127.0.0.1")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_what_it_returns_what_is_audited_and_how_it_was_tried(preset):
    head = preset.read_text().split("\n\n", 1)[0]
    for word in ("Returns", "Audited", "Tried"):
        assert re.search(rf"^# {word}: \S", head, re.MULTILINE), f"{preset.name} lacks '# {word}:'"
    assert max(map(len, preset.read_text().splitlines())) <= 130


def test_every_kind_has_a_preset():
    kinds = {load_config(preset, AnyKey()).upstreams[0].kind for preset in PRESETS}
    assert kinds == set(DIALECTS)
