"""Tokens a second of the way from an answer back to its ids, apart from the reference model.

    python -m bench.alignment [--answers 200] [--save]

    given     ids checked against the text that the client saw; the peer is transformers' own decode and compare
    lattice   the search's bookkeeping: one answer in three has a token pair that the tokenizer would write as one,
              and the scores come ready-made

One thread, on the demo model's tokenizer. Texts are recorded answers of the test data, joined and cut.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.run import ROOT, save_case
from verifier.alignment import align
from verifier.answers import AnswerText
from verifier.demo_model import ensure_demo_model
from verifier.lattice import search
from verifier.scoring import TokenScores
from verifier.tokenization import ChatTokenizer

GOLDEN = ROOT / "tests" / "data" / "golden"
LEAST = {"given": 200_000, "lattice": 20_000}
"""Tokens a second of CPU time."""


def choices(count: int) -> list[dict[str, Any]]:
    """Folded choices with ids, repeated until there are enough."""
    lines = [line for path in sorted(GOLDEN.glob("*.jsonl")) for line in path.read_text().splitlines()]
    recorded = [json.loads(lines[n % len(lines)]) for n in range(count)]
    return [
        {"text": r["text"], "token_ids": r["output_token_ids"], "finish_reason": r["finish_reason"],
         "stop_reason": None, "index": 0}
        for r in recorded
    ]  # fmt: skip


def given(answers: list[dict[str, Any]], tokenizer: ChatTokenizer) -> int:
    for answer in answers:
        align(answer, tokenizer, complete=True)
    return sum(len(answer["token_ids"]) for answer in answers)


def peer(answers: list[dict[str, Any]], tokenizer: ChatTokenizer) -> int:
    for answer in answers:
        tokenizer.decode(answer["token_ids"]).startswith(answer["text"])
    return sum(len(answer["token_ids"]) for answer in answers)


def lattice(answers: list[dict[str, Any]], tokenizer: ChatTokenizer) -> int:
    """Searches whose predictions are the recorded ids wherever the path is in step with them."""
    for answer in answers:
        truth = np.array(answer["token_ids"])
        running = search([AnswerText(tokenizer.spelling.spell(answer["token_ids"], special=False))], tokenizer.spelling)
        tail = next(running)
        try:
            while True:
                tail = running.send(_ready(np.array(tail.token_ids), tail.first, truth))
        except StopIteration:
            continue
    return sum(len(answer["token_ids"]) for answer in answers)


def _ready(path: Any, first: int, truth: Any) -> TokenScores:
    predicted = np.zeros(len(path), np.int64)
    shared = min(len(path), len(truth))
    step = int(np.argmin(np.append(path[:shared] == truth[:shared], False)))
    predicted[: step + 1] = truth[: len(predicted[: step + 1])]
    claimed, real = path[first:], np.full(len(path) - first, 0.2, np.float32)
    rank = np.zeros(len(claimed), np.int32)
    return TokenScores(claimed, predicted[first:], real, np.log(real), real, real * 0, rank, real)


def rate(work: Callable[[], int]) -> float:
    """Tokens a second of CPU time, the best of three."""
    best = 0.0
    for _ in range(3):
        started = time.process_time()
        tokens = work()
        best = max(best, tokens / (time.process_time() - started))
    return best


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--save", action="store_true", help="put the rates into bench/results/alignment.json")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = ChatTokenizer(ensure_demo_model())
    answers, found = choices(args.answers), {}
    for name, work in (("given", given), ("peer: transformers decode", peer), ("lattice", lattice)):
        found[name] = rate(lambda work=work: work(answers, tokenizer))  # type: ignore[misc]
        print(f"{name:28s} {found[name]:12,.0f} tokens/s of one core", flush=True)
        if args.save:
            save_case("alignment", {"case": name, "tokens_per_cpu_second": round(found[name])})
    sys.exit(any(found[name] < least for name, least in LEAST.items()))


if __name__ == "__main__":
    main()
