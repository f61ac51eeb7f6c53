import copy
from pathlib import Path

import pytest

from proxy.config import Limits, load_config, parse_config
from proxy.errors import ConfigError
from proxy.upstreams import Mode

CONFIGS = Path(__file__).parent.parent / "configs"
ENVIRONMENT = {
    "SEEDPROOF_SEED_SECRET": "0123456789abcdef", "KEY": "sk-canary", "OWN_VLLM_API_KEY": "a", "OPENROUTER_API_KEY": "b",
}
GOOD = {
    "seed": {"secret_env": "SEEDPROOF_SEED_SECRET"},
    "upstreams": [{
        "name": "up", "base_url": "http://h:1/v1/", "kind": "vllm", "api_key_env": "KEY",
        "models": {"m": {"reference": "r", "sampler": "greedy"}},
    }],
}


def changed(path, value):
    document = copy.deepcopy(GOOD)
    *parents, last = path
    table = document
    for step in parents:
        table = table.setdefault(step, {}) if isinstance(table, dict) else table[step]
    table[last] = value
    return document


def test_defaults():
    config = parse_config(GOOD, ENVIRONMENT)
    assert (config.host, config.port, config.store) == ("127.0.0.1", 8080, "sqlite:///seedproof.db")
    assert config.limits == Limits()
    [upstream] = config.upstreams
    assert (upstream.base_url, upstream.audit_rate, upstream.api_key) == ("http://h:1/v1", 1.0, "sk-canary")


def test_secrets_are_not_in_the_repr():
    text = repr(parse_config(GOOD, ENVIRONMENT))
    assert "sk-canary" not in text
    assert "0123456789abcdef" not in text


def test_model_sampling_fills_up_from_the_upstream():
    document = changed(("upstreams", 0, "sampling"), {"temperature": 1, "top_k": 5})
    document["upstreams"][0]["models"]["m"]["sampling"] = {"temperature": 0.5}
    sampling = parse_config(document, ENVIRONMENT).upstreams[0].models["m"].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, None, 5)


@pytest.mark.parametrize(("path", "value", "words"), [
    (("lisen",), "x", "unknown key 'lisen' in the top level (did you mean 'listen'?)"),
    (("upstreams", 0, "audit_rte"), 1, "did you mean 'audit_rate'?"),
    (("upstreams", 0, "sampling"), {"temprature": 1}, "did you mean 'temperature'?"),
    (("upstreams", 0, "models", "m", "refrence"), "r", "did you mean 'reference'?"),
    (("limits",), {"idle_second": 1}, "did you mean 'idle_seconds'?"),
    (("limits",), {"idle_seconds": 0}, "above 0"),
    (("listen",), "8080", "must look like 127.0.0.1:8080"),
    (("listen",), "h:99999", "must look like"),
    (("seed",), {}, "needs secret_env or secret_file"),
    (("seed",), {"secret_env": "NOT_SET"}, "environment variable NOT_SET, which is not set"),
    (("seed",), {"secret_env": "KEY"}, "shorter than 16 bytes"),
    (("seed",), {"secret_file": "missing"}, "secret_file 'missing' cannot be read"),
    (("seed",), {"secret_file": "a", "secret_env": "KEY"}, "keep one"),
    (("upstreams",), [], "at least one [[upstreams]]"),
    (("upstreams", 0, "name"), "Up Stream", "a name stands in paths"),
    (("upstreams", 0, "name"), "v1", "a name stands in paths"),
    (("upstreams", 0, "kind"), "vlm", "did you mean 'vllm'?"),
    (("upstreams", 0, "api_key_env"), "UNSET_KEY", "environment variable UNSET_KEY, which is not set"),
    (("upstreams", 0, "audit_rate"), 1.5, "audit_rate must be from 0 to 1"),
    (("upstreams", 0, "audit_rate"), True, "must be a number"),
    (("upstreams", 0, "base_url"), "http://h:1", "http://h:1/v1"),
    (("upstreams", 0, "base_url"), "ftp://h/v1", "must look like https://host/v1"),
    (("upstreams", 0, "base_url"), "http://u:p@h/v1", "must not hold credentials"),
    (("upstreams", 0, "sampling"), {"top_p": 0}, "top_p must be above 0"),
    (("upstreams", 0, "sampling"), {"top_k": 1.5}, "top_k must be an integer"),
    (("upstreams", 0, "models", "m"), {"sampler": "greedy"}, "lacks 'reference'"),
    (("upstreams", 0, "models", "m"), 1, "must be a table"),
    (("upstreams", 0, "policy"), "bond", "did you mean 'bound'?"),
    (("upstreams", 0, "unverifiable"), "drop", "known: forward, refuse"),
    (("upstreams", 0, "bounds"), {"temperature": [0, 1]}, "count under policy = \"bound\" only"),
    (("upstreams", 0, "providers"), ["a"], "is for routers"),
    (("upstreams", 0, "sampling"), {"min_p": 2}, "min_p must be from 0 to 1"),
    (("clients",), [{"name": "a", "key_sha256": "x"}], "64 hexadecimal digits"),
    (("clients",), [{"name": "a b", "key_sha256": "0" * 64}], "stands in its key"),
    (("clients",), [{"name": "a", "key_sha256": "0" * 64}] * 2, "two clients are named 'a'"),
    (("clients",), [{"name": "a", "key_sha256": "0" * 64, "upstreams": ["u"]}], "no upstream is named 'u'"),
    (("clients",), [{"name": "a", "key_sha256": "0" * 64, "expires": "2027"}], "must be a date"),
    (("clients",), [{"name": "a", "key_sha256": "0" * 64, "models": []}], "must be a list of names"),
])
def test_wrong_configuration_says_what_to_do(path, value, words):
    with pytest.raises(ConfigError) as error:
        parse_config(changed(path, value), ENVIRONMENT)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_top_k_is_refused_where_the_provider_does_not_take_it():
    document = changed(("upstreams", 0, "kind"), "openai")
    document["upstreams"][0]["sampling"] = {"top_k": 3}
    with pytest.raises(ConfigError, match="does not take top_k"):
        parse_config(document, ENVIRONMENT)


def test_model_of_two_upstreams_needs_a_prefix():
    document = copy.deepcopy(GOOD)
    document["upstreams"].append({**document["upstreams"][0], "name": "two"})
    with pytest.raises(ConfigError, match="set prefix_only = true"):
        parse_config(document, ENVIRONMENT)
    document["upstreams"][1]["prefix_only"] = True
    assert len(parse_config(document, ENVIRONMENT).upstreams) == 2
    document["upstreams"][1]["name"] = "up"
    with pytest.raises(ConfigError, match="two upstreams are named 'up'"):
        parse_config(document, ENVIRONMENT)


def test_secret_file_counts_from_the_configuration(tmp_path):
    (tmp_path / "secret").write_text("0123456789abcdef0123\n")
    (tmp_path / "c.toml").write_text(
        '[seed]\nsecret_file = "secret"\n[[upstreams]]\nname = "a"\nbase_url = "http://h/v1"\n'
    )
    assert load_config(tmp_path / "c.toml").seed_secret == b"0123456789abcdef0123"


@pytest.mark.parametrize("text", ["[", "listen = 3\n", None])
def test_file_errors_name_the_file(tmp_path, text):
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.toml"):
        load_config(path)


def test_shipped_configurations_load(tmp_path):
    assert [up.name for up in load_config(CONFIGS / "demo.toml", ENVIRONMENT).upstreams] == ["honest", "int4"]
    secret = tmp_path / "seed"
    secret.write_text("0123456789abcdef")
    text = (CONFIGS / "production.toml").read_text().replace("/run/secrets/seedproof_seed", str(secret))
    (tmp_path / "p.toml").write_text(text)
    config = load_config(tmp_path / "p.toml", ENVIRONMENT)
    assert config.limits == Limits(drain_seconds=5)
    assert config.upstreams[0].models["Qwen/Qwen3-8B"].sampling.top_k == 20


@pytest.mark.parametrize("bounds", [[1], [2, 1], [0, 3], ["a", 1], 1, [True, 1]])
def test_wrong_bounds(bounds):
    document = changed(("upstreams", 0, "policy"), "bound")
    document["upstreams"][0]["bounds"] = {"temperature": bounds}
    with pytest.raises(ConfigError, match=r"temperature must be \[least, most\] within \[0, 2\]"):
        parse_config(document, ENVIRONMENT)


def test_policy_is_the_models_or_else_the_upstreams():
    document = changed(("upstreams", 0, "policy"), "bound")
    up = document["upstreams"][0]
    up |= {"unverifiable": "refuse", "bounds": {"temperature": [0.1, 1]}}
    up["models"]["n"] = {"reference": "r", "sampler": "greedy", "policy": "seed-only", "unverifiable": "forward"}
    models = parse_config(document, ENVIRONMENT).upstreams[0].models
    assert (models["m"].policy.mode, models["m"].policy.refuse) == (Mode.BOUND, True)
    assert models["m"].policy.bounds["temperature"] == (0.1, 1)
    assert models["m"].policy.bounds["min_p"] == (0, 1)
    assert (models["n"].policy.mode, models["n"].policy.refuse) == (Mode.SEED_ONLY, False)
