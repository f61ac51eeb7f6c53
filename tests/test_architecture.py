"""The house rules that a reader may rely on: which room imports what, what is pure, how names and sizes go.

Each rule is a function from a source file to the sentences it breaks, so that the rules are tried on planted
sources as well as on the tree.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("proxy", "storage", "verifier")

HEAVY = {"torch", "transformers", "numpy", "numba", "vllm", "triton", "ray"}
FORBIDDEN = {
    "proxy": {"verifier", "seedproof", *HEAVY},
    "storage": {"proxy", "verifier", "seedproof", "aiohttp", *HEAVY},
    # aiohttp's client sends alerts; its server is the proxy's
    "verifier": {"proxy", "seedproof", "aiohttp.web"},
}

PURE_CORES = {
    "proxy/clients",
    "proxy/dashboard_chart",
    "proxy/dashboard_format",
    "proxy/dashboard_login",
    "proxy/dashboard_rows",
    "proxy/dashboard_tokens",
    "proxy/demo_protocol",
    "proxy/doctor",
    "proxy/doctor_report",
    "proxy/draft",
    "proxy/excerpt",
    "proxy/headers",
    "proxy/limits",
    "proxy/observation",
    "proxy/policy",
    "proxy/protocol",
    "proxy/secrets",
    "proxy/sse",
    "proxy/token_ids",
    "proxy/transcript",
    "proxy/unverifiable",
    "proxy/upstreams",
    "storage/exchange_codec",
    "storage/journal_format",
    "storage/pieces",
    "storage/scores",
    "verifier/alert_payloads",
    "verifier/alerts",
    "verifier/alignment",
    "verifier/answer_text",
    "verifier/answers",
    "verifier/band",
    "verifier/calibration",
    "verifier/detectors",
    "verifier/drift",
    "verifier/evaluate",
    "verifier/evidence",
    "verifier/faults",
    "verifier/filters",
    "verifier/identify",
    "verifier/lattice",
    "verifier/linkage",
    "verifier/masses",
    "verifier/processors",
    "verifier/prompts",
    "verifier/report",
    "verifier/resync",
    "verifier/rows",
    "verifier/samplers",
    "verifier/sampling_params",
    "verifier/scaling",
    "verifier/scoring",
    "verifier/sequences",
    "verifier/speculation",
    "verifier/spelling",
    "verifier/stream_state",
    "verifier/throttle",
    "verifier/verdict",
}
IMPURE = {
    *("aiohttp", "aiosqlite", "asyncio", "asyncpg", "socket", "sqlalchemy", "sqlite3", "urllib.request"),
    *("os", "pathlib", "shutil", "subprocess", "tempfile", "threading"),
    *("random", "secrets", "time", "uuid", "uuid_utils"),
}
IMPURE_CALLS = {"open", "print", "input", "now", "utcnow", "today"}

ENGINES = {"vllm", "triton"}
ENGINE_ROOMS = ("reference", "kernels")
MODEL_LIBRARIES = {"transformers"}
MODEL_ROOMS = (*ENGINE_ROOMS, "cheats", "decode_batch", "demo_model", "generation", "model", "tokeniz")

CLUSTERS = {"ray"}
CLUSTER_ROOMS = ("ray_",)

VAGUE = {"utils", "util", "common", "manager", "managers", "helper", "helpers", "misc"}
LINES = 450


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the repository's root and its text."""

    path: PurePosixPath
    text: str

    @property
    def room(self) -> str:
        """The top-level folder, or the empty string for a file at the root."""
        return self.path.parts[0] if len(self.path.parts) > 1 else ""

    @property
    def exempt(self) -> bool:
        """Tests and migrations grow by accretion and are never read as a whole."""
        return self.room == "tests" or "migrations" in self.path.parts


def imports(source: Source) -> Iterator[str]:
    """Every module that the file imports at any depth: relative names resolved, literal dynamic ones too."""
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    package = source.path.parts[: len(source.path.parts) - node.level] if node.level else ()
    return ".".join([*package, *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def touches(module: str, names: set[str]) -> str | None:
    """The forbidden name that the module is or lies in."""
    return next((name for name in sorted(names) if f"{module}.".startswith(f"{name}.")), None)


def _imported(source: Source, names: set[str]) -> set[str]:
    return {name for module in imports(source) if (name := touches(module, names))}


def against_the_arrows(source: Source) -> list[str]:
    """proxy → storage ← verifier: what a room may not import."""
    forbidden = FORBIDDEN.get(source.room, set())
    return [f"{source.path} imports {name}" for name in sorted(_imported(source, forbidden))]


def joins_both_sides(source: Source) -> list[str]:
    """Only seedproof.py may know both proxy and verifier."""
    if source.room == "tests" or str(source.path) == "seedproof.py":
        return []
    both = _imported(source, {"proxy", "verifier"}) == {"proxy", "verifier"}
    return [f"{source.path} imports both proxy and verifier"] if both else []


def impure_core(source: Source) -> list[str]:
    """A pure core neither does I/O nor reads a clock nor draws randomness."""
    stem = str(source.path.with_suffix(""))
    if not any(f"{stem}/".startswith(f"{core}/") for core in PURE_CORES):
        return []
    calls = {_called(node) for node in ast.walk(ast.parse(source.text)) if isinstance(node, ast.Call)}
    return [
        *(f"{source.path} imports {name}" for name in sorted(_imported(source, IMPURE))),
        *(f"{source.path} calls {name}()" for name in sorted(calls & IMPURE_CALLS)),
    ]


def engine_out_of_place(source: Source) -> list[str]:
    """Engines belong to reference models and kernels, transformers to the model's own files too, Ray to ray_*."""
    if source.room not in ROOMS:
        return []
    names = source.path.parts[1:]
    forbidden = set() if any(name.startswith(ENGINE_ROOMS) for name in names) else set(ENGINES)
    if not any(name.startswith(MODEL_ROOMS) for name in names):
        forbidden |= MODEL_LIBRARIES
    if not source.path.name.startswith(CLUSTER_ROOMS):
        forbidden |= CLUSTERS
    return [f"{source.path} imports {name}" for name in sorted(_imported(source, forbidden))]


def vague_name(source: Source) -> list[str]:
    """A file or folder says what it holds."""
    words = {word for part in source.path.with_suffix("").parts for word in part.lower().split("_")}
    return [f"{source.path} is named {word}" for word in sorted(words & VAGUE)]


def too_long(source: Source) -> list[str]:
    """A longer file is two rooms."""
    lines = len(source.text.splitlines())
    return [] if source.exempt or lines <= LINES else [f"{source.path} has {lines} lines (at most {LINES})"]


Rule = Callable[[Source], list[str]]
RULES: list[Rule] = [
    against_the_arrows,
    joins_both_sides,
    impure_core,
    engine_out_of_place,
    vague_name,
    too_long,
]


def tree() -> list[Source]:
    """All Python files of the project."""
    folders = (*ROOMS, "bench", "tests")
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return [
        Source(PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text(encoding="utf-8"))
        for path in sorted(paths)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Rule) -> None:
    sources = tree()
    assert {source.room for source in sources} >= {*ROOMS, "tests"}
    broken = [sentence for source in sources for sentence in rule(source)]
    assert not broken, "\n".join(broken)


PLANTED: list[tuple[Rule, str, str, str]] = [
    (against_the_arrows, "proxy/forward.py", "import verifier", "imports verifier"),
    (against_the_arrows, "proxy/forward.py", "from verifier.errors import VerifierError", "imports verifier"),
    (against_the_arrows, "proxy/forward.py", "def f():\n    import torch.nn as nn", "imports torch"),
    (against_the_arrows, "proxy/forward.py", "if TYPE_CHECKING:\n    import numpy", "imports numpy"),
    (against_the_arrows, "proxy/forward.py", "importlib.import_module('torch')", "imports torch"),
    (against_the_arrows, "proxy/forward.py", "__import__('transformers')", "imports transformers"),
    (against_the_arrows, "verifier/worker.py", "from proxy import protocol", "imports proxy"),
    (against_the_arrows, "verifier/worker.py", "from aiohttp import web", "imports aiohttp"),
    (against_the_arrows, "verifier/samplers/philox.py", "import seedproof", "imports seedproof"),
    (against_the_arrows, "storage/jobs.py", "from proxy.sse import Framer", "imports proxy"),
    (against_the_arrows, "storage/migrations/versions/one.py", "import verifier.scoring", "imports verifier"),
    (joins_both_sides, "bench/serve.py", "import proxy.app\nimport verifier.worker", "imports both"),
    (joins_both_sides, "serve.py", "from proxy import app\nfrom verifier import worker", "imports both"),
    (impure_core, "proxy/sse.py", "import asyncio", "imports asyncio"),
    (impure_core, "proxy/policy.py", "from time import monotonic", "imports time"),
    (impure_core, "verifier/samplers/vllm/philox.py", "import os.path", "imports os"),
    (impure_core, "verifier/scoring.py", "from urllib import request", "imports urllib.request"),
    (impure_core, "proxy/protocol.py", "x = datetime.now(timezone.utc)", "calls now()"),
    (impure_core, "verifier/verdict.py", "text = open('x').read()", "calls open()"),
    (engine_out_of_place, "verifier/scoring.py", "import triton.language as tl", "imports triton"),
    (engine_out_of_place, "verifier/worker.py", "from transformers import AutoModel", "imports transformers"),
    (engine_out_of_place, "verifier/tokenization.py", "import vllm", "imports vllm"),
    (engine_out_of_place, "verifier/executor_ray.py", "def f():\n    import ray", "imports ray"),
    (engine_out_of_place, "verifier/worker.py", "from ray import data", "imports ray"),
    (vague_name, "proxy/utils.py", "", "is named utils"),
    (vague_name, "verifier/helpers/noise.py", "", "is named helpers"),
    (vague_name, "storage/job_manager.py", "", "is named manager"),
    (too_long, "proxy/forward.py", "x = 1\n" * (LINES + 1), "has 451 lines"),
]


@pytest.mark.parametrize(("rule", "path", "text", "sentence"), PLANTED)
def test_a_planted_violation_is_found(rule: Rule, path: str, text: str, sentence: str) -> None:
    found = rule(Source(PurePosixPath(path), text))
    assert len(found) == 1
    assert found[0].startswith(f"{path} {sentence}")


ALLOWED: list[tuple[Rule, str, str]] = [
    (against_the_arrows, "proxy/forward.py", "import storage.jobs\nfrom proxy import sse\nimport aiohttp"),
    (against_the_arrows, "proxy/forward.py", "from . import verifier\nfrom .torch import x\nimport torchy"),
    (against_the_arrows, "verifier/worker.py", "import torch\nfrom storage import jobs"),
    (joins_both_sides, "seedproof.py", "import proxy.commands\nimport verifier.commands"),
    (joins_both_sides, "tests/test_end_to_end.py", "import proxy.app\nimport verifier.worker"),
    (joins_both_sides, "bench/verify_cpu.py", "import verifier.worker"),
    (impure_core, "proxy/recorder.py", "import asyncio, time"),
    (impure_core, "proxy/sse_server.py", "import asyncio"),
    (impure_core, "verifier/scoring.py", "import math\nfrom urllib.parse import quote"),
    (engine_out_of_place, "verifier/reference_vllm.py", "import vllm\nimport transformers"),
    (engine_out_of_place, "verifier/kernels/draw.py", "import triton"),
    (engine_out_of_place, "verifier/ray_driver.py", "import ray"),
    (vague_name, "verifier/commonsense.py", ""),
    (too_long, "tests/test_x.py", "x = 1\n" * (LINES + 1)),
    (too_long, "storage/migrations/versions/one.py", "x = 1\n" * (LINES + 1)),
    (too_long, "proxy/forward.py", "x = 1\n" * LINES),
]


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED)
def test_what_the_rule_allows(rule: Rule, path: str, text: str) -> None:
    assert rule(Source(PurePosixPath(path), text)) == []


def test_importing_the_whole_proxy_loads_nothing_heavy() -> None:
    """The arrows hold for what dependencies and storage pull in as well, so the proxy image stays small."""
    modules = [
        ".".join(source.path.with_suffix("").parts).removesuffix(".__init__")
        for source in tree()
        if source.room in {"proxy", "storage"} and source.path.stem != "__main__" and not source.exempt
    ]
    script = (
        "import importlib, sys\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        f"print(*sorted({FORBIDDEN['proxy']!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
