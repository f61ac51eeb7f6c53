"""What scoring costs beside the forward pass it needs, on the CPU, over the same batches in one run.

Bare: the reference's logits of every output position, thrown away. Ours: the same, plus noise, filters and scores.
Both are run alternately, and CPU time is compared, since machines are noisy. Prints one JSON line per case.

    usage: python -m bench.verify_cpu [--sequences N] [--rounds N] [--save]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from verifier.demo_model import ensure_demo_model
from verifier.recordings import read_recordings
from verifier.reference import TransformersReference
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.verify import claims_of

ROOT = Path(__file__).parents[1]
CASES = (("v2_plain", "vllm@0.26.0/v2"), ("honest_bf16", "vllm@0.26.0/v1"), ("t07_p09", "vllm@0.26.0/v1"))


def cpu_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of all threads, and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(reference: TransformersReference, claims: list[Claim], rounds: int) -> dict[str, float]:
    """Least CPU time of each over the rounds, which alternate."""
    sequences = [claim.sequence for claim in claims]
    tokens = sum(len(sequence.output_token_ids) for sequence in sequences)
    replay(reference, claims[:1])
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(cpu_seconds(lambda: [rows.logits.shape for rows in reference.logits(sequences)]))
        ours.append(cpu_seconds(lambda: replay(reference, claims)))
    bare_cpu, ours_cpu = min(cpu for cpu, _ in bare), min(cpu for cpu, _ in ours)
    return {
        "tokens": tokens,
        "bare_cpu_ms_per_token": 1e3 * bare_cpu / tokens,
        "ours_cpu_ms_per_token": 1e3 * ours_cpu / tokens,
        "added": ours_cpu / bare_cpu - 1,
        "ours_tokens_per_second": tokens / min(wall for _, wall in ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write bench/results/verify_cpu.json")
    args = parser.parse_args()
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


def save(cases: list[dict[str, object]], peak: int) -> None:
    """Keep the run with what it ran on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "peak_memory_bytes": peak,
        "cases": cases,
    }
    path = ROOT / "bench/results/verify_cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
