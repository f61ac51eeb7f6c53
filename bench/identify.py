"""What scoring under all contracts costs beside scoring under one, from the same forward pass of real outputs.

One: forward pass, softmax sums and the right contract's draws. All: the same with every contract tried and ranked; as
`identify` does (the rare ones only where no common one is certain), and exhaustively. `scoring` is the same without the
forward pass. Everything runs after it is compiled, the ways in turn; CPU time is compared, since machines are noisy.
Prints one JSON line per case.

    usage: python -m bench.identify [--tokens N] [--rounds N] [--save]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from bench.run import save_case
from verifier.bets import bet
from verifier.demo_model import ensure_demo_model
from verifier.identify import cut_down, pieces_of, rank
from verifier.recordings import read_recordings
from verifier.reference import TransformersReference
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.scoring import score

ROOT = Path(__file__).parents[1]
CASES = ("v2_plain", "plain_t1", "t07_p09", "int4", "v1_spec", "v1_noseed")


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of all threads."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(reference: TransformersReference, name: str, tokens: int, rounds: int) -> dict[str, object]:
    """One case's line: least CPU seconds of each over the rounds, which alternate."""
    seed = {"seed": 77} if name == "v1_noseed" else {}
    samples = cut_down(read_recordings(ROOT / "tests/data/golden" / f"{name}.jsonl", overrides=seed), tokens)
    pieces = [*pieces_of(reference, samples)]
    found = rank(pieces, reference.width)
    rank(pieces, reference.width, exhaustive=True)
    rules = contract("vllm@0.26.0/v1" if found.contract is None else found.contract.partition(":")[0])
    claims = [Claim(one.sequence, rules.choice_seed(one.seed or 0, one.choice), one.params, rules) for one in samples]

    def score_one() -> None:
        for claim, each in zip(claims, pieces, strict=True):
            positions = rules.positions(len(claim.sequence.prompt_token_ids), len(each.logits))
            score(
                each.logits, each.claimed, seed=claim.seed, positions=positions, params=claim.params, contract=rules
            )

    ways = {
        "one": lambda: replay(reference, claims),
        "identify": lambda: rank([*pieces_of(reference, samples)], reference.width),
        "exhaustive": lambda: rank([*pieces_of(reference, samples)], reference.width, exhaustive=True),
        "one scoring": score_one,
        "identify scoring": lambda: rank(pieces, reference.width),
        "exhaustive scoring": lambda: rank(pieces, reference.width, exhaustive=True),
        "a bet": lambda: bet(rules.id, 0, pieces),
    }
    seen = [{way: cpu_seconds(run) for way, run in ways.items()} for _ in range(rounds)]
    least = {way: min(one[way] for one in seen) for way in ways}
    return {
        "case": name, "contract": found.contract, "reason": found.reason, "tokens": found.tokens, "rounds": rounds,
        "cpu_seconds": {way: round(seconds, 4) for way, seconds in least.items()},
        "ratios": {
            way: round(least[way] / least["one scoring" if "scoring" in way else "one"], 2)
            for way in ("identify", "exhaustive", "identify scoring", "exhaustive scoring")
        },
    }  # fmt: skip


def main() -> None:
    """Print every case, and save them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--save", action="store_true", help="write bench/results/identify.json")
    args = parser.parse_args()
    reference = TransformersReference(ensure_demo_model())
    for name in args.cases:
        case = measure(reference, name, args.tokens, args.rounds)
        print(json.dumps(case), flush=True)
        if args.save:
            save_case("identify", case)


if __name__ == "__main__":
    main()
