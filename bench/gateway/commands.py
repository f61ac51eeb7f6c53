"""How each gateway is started for `bench.proxy`, on which port and under which path it reaches which provider."""

from __future__ import annotations

import contextlib
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

CHUNKS = 64
KINDS = ("json", "stream", "paced")


@dataclass(frozen=True)
class Gateway:
    """`share` of the requests is what a slow gateway gets, so that a run ends."""

    name: str
    command: list[str]
    port: int
    probe: str
    environment: dict[str, str] = field(default_factory=dict)
    headers: list[str] = field(default_factory=list)
    share: float = 1.0
    prefixed: bool = True

    def path(self, kind: str) -> str:
        """What the gateway's address ends with for one kind of provider."""
        return f"/{kind}/v1" if self.prefixed else "/v1"

    def model(self, kind: str) -> str:
        """The model's name in the request."""
        return "m" if self.prefixed else kind


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


def gateways(scratch: Path, litellm: Path, providers: dict[str, int]) -> dict[str, Gateway]:
    """All of them, before the providers at these ports; LiteLLM only where its environment is."""
    bare, ours, fast, theirs = free_ports(4)
    known = {
        "bare_proxy": Gateway(
            "bare_proxy", [sys.executable, "-m", "bench.gateway.bare", "--port", str(bare), *(
                f"--to={kind}=http://127.0.0.1:{port}" for kind, port in providers.items()
            )], bare, "/nothing",
        ),
        "seedproof": _ours("seedproof", scratch, ours, providers, journal="strict"),
        "seedproof_fast": _ours("seedproof_fast", scratch, fast, providers, journal="fast"),
    }
    program = litellm / "bin/litellm"
    if program.exists():
        known["litellm"] = Gateway(
            "litellm", [
                str(program), "--config", str(_litellm(scratch, providers)), "--host", "127.0.0.1",
                "--port", str(theirs), "--num_workers", "1",
            ], theirs, "/health/liveliness", share=0.05, prefixed=False, headers=["Authorization: Bearer sk-test"],
            environment={
                "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_DOCS": "True",
                "DISABLE_ADMIN_UI": "True", "LITELLM_LOG": "ERROR",
            },
        )
    return known


def _ours(name: str, scratch: Path, own: int, providers: dict[str, int], *, journal: str) -> Gateway:
    """Everything on: every exchange is journaled, recorded in SQLite, forced, and given a job.

    With a `strict` journal an answer's last bytes wait for the disk, so latency at concurrency 1 is that of its sync.
    """
    lines = [
        f'listen = "127.0.0.1:{own}"', f'store = "sqlite:///{scratch}/{name}.db"',
        "[seed]", 'secret_env = "BENCH_SEED"', "[journal]", f'mode = "{journal}"',
    ]
    for kind, port in providers.items():
        lines += [
            "[[upstreams]]", f'name = "{kind}"', f'base_url = "http://127.0.0.1:{port}/v1"', 'kind = "vllm"',
            "prefix_only = true", "audit_rate = 1.0", "[upstreams.sampling]", "temperature = 1.0", "top_p = 1.0",
            "[upstreams.models.m]", 'reference = "demo"', 'sampler = "vllm@0.26.0/v2"',
        ]
    path = scratch / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "seedproof", "serve", "--config", str(path)]
    return Gateway(name, command, own, "/healthz", environment={"BENCH_SEED": "a seed secret for benchmarks"})


def _litellm(scratch: Path, providers: dict[str, int]) -> Path:
    """One model name for each kind of provider, since LiteLLM chooses by model."""
    models = "\n".join(
        f"  - model_name: {kind}\n    litellm_params: {{model: openai/m, api_base: http://127.0.0.1:{port}/v1, "
        "api_key: none}" for kind, port in providers.items()
    )
    path = scratch / "litellm.yaml"
    path.write_text(
        f"model_list:\n{models}\ngeneral_settings: {{master_key: sk-test}}\nlitellm_settings: {{telemetry: false}}\n"
    )
    return path
