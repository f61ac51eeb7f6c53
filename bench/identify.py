"""What scoring under all contracts costs beside scoring under one, from the same forward pass of real outputs.

One: forward pass, softmax sums and the right contract's draws. All: the same with every contract tried and ranked.
Both run after everything is compiled; CPU time is compared, since machines are noisy. Prints one JSON line per case.

    usage: python -m bench.identify [--tokens N] [--rounds N] [--save]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.verify_cpu import cpu_seconds
from verifier.demo_model import ensure_demo_model
from verifier.identify import cut_down, identify
from verifier.recordings import read_recordings
from verifier.reference import TransformersReference
from verifier.replay import Claim, replay
from verifier.samplers import contract

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "identify.json"
CASES = ("v2_plain", "plain_t1", "t07_p09", "int4", "v1_spec")


def measure(reference: TransformersReference, name: str, tokens: int, rounds: int) -> dict[str, object]:
    """One case's line: least CPU seconds of each over the rounds, which alternate."""
    recordings = read_recordings(ROOT / "tests/data/golden" / f"{name}.jsonl")
    found = identify(reference, recordings, limit=tokens, exhaustive=True)
    rules = contract(found.ranking[0].contract)
    claims = [
        Claim(sample.sequence, rules.choice_seed(sample.seed or 0, sample.choice), sample.params, rules)
        for sample in cut_down(recordings, tokens)
    ]
    one, usual, every = [], [], []
    for _ in range(rounds):
        one.append(cpu_seconds(lambda: replay(reference, claims))[0])
        usual.append(cpu_seconds(lambda: identify(reference, recordings, limit=tokens))[0])
        every.append(cpu_seconds(lambda: identify(reference, recordings, limit=tokens, exhaustive=True))[0])
    return {
        "case": name, "contract": found.contract, "reason": found.reason, "tokens": found.tokens,
        "contracts": len(found.ranking), "one_cpu_s": min(one), "identify_cpu_s": min(usual),
        "exhaustive_cpu_s": min(every), "identify_ratio": min(usual) / min(one),
        "exhaustive_ratio": min(every) / min(one),
    }  # fmt: skip


def main() -> None:
    """Print every case, and save them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write bench/results/identify.json")
    args = parser.parse_args()
    reference = TransformersReference(ensure_demo_model())
    cases = []
    for name in CASES:
        cases.append(measure(reference, name, args.tokens, args.rounds))
        print(json.dumps(cases[-1]), flush=True)
    if args.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"cases": cases}, indent=1))


if __name__ == "__main__":
    main()
