"""The configurations that are shipped: each loads, names a sampler that exists, and says what it was tried on."""

import re
from pathlib import Path

import pytest
import yaml

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


def test_what_compose_mounts_is_there_and_its_proxy_loads():
    compose = yaml.safe_load((CONFIGS.parent / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"database", "proxy", "worker", "prometheus", "grafana"}
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    own = [path for path in mounted if path.startswith("./")]
    assert len(own) == 6
    assert [path for path in own if not (CONFIGS.parent / path).exists()] == []
    assert {path for path in mounted if path[0] not in "./$"} == set(compose["volumes"])
    dockerfile = (CONFIGS.parent / "Dockerfile").read_text()
    for name in ("proxy", "worker"):
        assert f"AS {services[name]['build']['target']}\n" in dockerfile
    config = load_config(CONFIGS / "compose" / "seedproof.toml", AnyKey())
    check_contracts(config)
    (model,) = config.upstreams[0].models.values()
    assert f"{model.reference}=/models/served" in services["worker"]["command"]
    assert config.store in services["worker"]["command"]


def test_compose_scrapes_and_draws_from_its_own_services():
    scraped = yaml.safe_load((CONFIGS / "compose" / "prometheus.yml").read_text())
    port = load_config(CONFIGS / "compose" / "seedproof.toml", AnyKey()).metrics.port
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": [f"proxy:{port}"]}]
    provisioned = CONFIGS / "grafana" / "provisioning" / "datasources" / "seedproof.yml"
    ours, theirs = (
        [(source["uid"], source["type"]) for source in yaml.safe_load(path.read_text())["datasources"]]
        for path in (CONFIGS / "compose" / "datasources.yml", provisioned)
    )
    assert ours == theirs
