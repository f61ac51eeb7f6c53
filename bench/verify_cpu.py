"""What scoring costs beside the forward pass it needs, on the CPU, over the same sequences in one run.

Bare: the reference's logits of every output position, thrown away. Ours: the same, plus noise, filters and scores.
Each sequence is run both ways in turn, and the least CPU time of each counts. One thread: what threads spend waiting
for each other is no work, and depends on what else the machine does. Prints one JSON line per case.

    usage: python -m bench.verify_cpu [--sequences N] [--rounds N] [--save]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numba
import numpy as np
import torch

from verifier.demo_model import ensure_demo_model
from verifier.recordings import read_recordings
from verifier.reference import TransformersReference
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.verify import claims_of

ROOT = Path(__file__).parents[1]
CASES = (
    ("v2_plain", "vllm@0.26.0/v2"), ("v2_plain", "vllm@0.33.0/v2"), ("v2_plain", "vllm@0.26.0/v1"),
    ("honest_bf16", "vllm@0.26.0/v1"), ("honest_bf16", "vllm@0.33.0/v2"), ("t07_p09", "vllm@0.26.0/v1"),
)  # fmt: skip


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds that this process spends in `run`."""
    before = time.process_time()
    run()
    return time.process_time() - before


def forward(reference: TransformersReference, claim: Claim) -> None:
    """Make the logits that scoring needs, and throw them away."""
    for _ in reference.logits([claim.sequence]):
        pass


def measure(reference: TransformersReference, claims: list[Claim], rounds: int) -> dict[str, float]:
    """Least CPU time of every sequence, bare and scored, summed over the sequences."""
    tokens = sum(len(claim.sequence.output_token_ids) for claim in claims)
    replay(reference, claims[:1])  # compiles the kernels
    bare, ours = np.full(len(claims), np.inf), np.full(len(claims), np.inf)
    for _ in range(rounds):
        for i, claim in enumerate(claims):
            bare[i] = min(bare[i], cpu_seconds(partial(forward, reference, claim)))
            ours[i] = min(ours[i], cpu_seconds(partial(replay, reference, [claim])))
    return {
        "tokens": tokens,
        "bare_cpu_ms_per_token": 1e3 * bare.sum() / tokens,
        "ours_cpu_ms_per_token": 1e3 * ours.sum() / tokens,
        "added": ours.sum() / bare.sum() - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write bench/results/verify_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    reference = TransformersReference(ensure_demo_model())
    cases = []
    for name, sampler in CASES:
        recordings = read_recordings(ROOT / "tests/data/golden" / f"{name}.jsonl", limit=args.sequences)
        case = {"case": name, "sampler": sampler}
        case |= measure(reference, claims_of(recordings, contract(sampler), name), args.rounds)
        cases.append(case)
        print(json.dumps(case))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_memory_bytes": peak, "worst_added": max(case["added"] for case in cases)}))
    if args.save:
        save(cases, peak)


def processor() -> str:
    """The processor's name, where Linux tells it, and the widest vectors that kernels are compiled for."""
    described = Path("/proc/cpuinfo")
    text = described.read_text() if described.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    widest = next((vectors for vectors in ("avx512f", "avx2") if vectors in text), platform.machine())
    return f"{name[1] if name else platform.processor()}, {widest}"


def save(cases: list[dict[str, object]], peak: int) -> None:
    """Keep the run with what it ran on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "hardware": f"{processor()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__},
        "peak_memory_bytes": peak,
        "cases": cases,
    }
    path = ROOT / "bench/results/verify_cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
