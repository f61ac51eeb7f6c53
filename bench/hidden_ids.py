"""Match rates of recorded outputs with their token ids hidden, beside those of the same outputs with ids.

    python -m bench.hidden_ids [--golden DIR] [--limit N] [--cases NAME …] [--save]

ids      the recorded prompt and output ids
text     messages and text only, as `seedproof verify --hide-ids` reads them; ambiguous tokens are not scored
own      the tokenizer's own encoding of the text, without any search

Honest files must give the same rate from their text as from their ids; a wrong seed and a cheating provider must gain
nothing by the search. A path whose scores are known already is not scored again, so a case costs one forward pass and
the paths that the search tried. Exits with 1 where a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.run import ROOT, save_case
from verifier.demo_model import ensure_demo_model
from verifier.lattice import Reading
from verifier.reading import TextClaim, read_texts
from verifier.recordings import read_recordings
from verifier.reference import TransformersReference
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.scoring import TokenScores
from verifier.tokenization import ChatTokenizer
from verifier.verify import claims_of, text_claims_of

V1, V2 = "vllm@0.26.0/v1", "vllm@0.26.0/v2"
WRONG_SEED = 987654321
MAX_DIFFERENCE, MAX_AMBIGUOUS, MAX_GAIN = 0.003, 0.01, 0.005


@dataclass(frozen=True)
class Case:
    """One file under one contract; `overrides` replace the file's own fields."""

    name: str
    file: str
    sampler: str
    honest: bool = True
    overrides: tuple[tuple[str, Any], ...] = ()


CASES = (
    *(Case(name, name, V1) for name in ("honest_bf16", "honest_bf16_seq", "plain_t1", "t07_p09", "v1_pen", "v1_bias")),
    Case("greedy", "greedy", "greedy"),
    *(Case(name, name, V2) for name in ("v2_plain", "v2_n4", "v2_compiled")),
    *(Case(name, name, V1, honest=False) for name in ("int4", "fp8")),
    Case("temp11", "temp11", V1, False, (("temperature", 1.0),)),
    Case("v2_fp8", "v2_fp8", V2, honest=False),
    *(
        Case(f"{name}, wrong seed", name, sampler, False, (("seed", WRONG_SEED),))
        for name, sampler in (("plain_t1", V1), ("honest_bf16", V1), ("t07_p09", V1), ("v2_plain", V2))
    ),
)


def measure(
    case: Case, golden: Path, limit: int | None, reference: TransformersReference, tokenizer: ChatTokenizer
) -> dict[str, Any]:
    """One case's rates and what its search did."""
    recordings = read_recordings(golden / f"{case.file}.jsonl", overrides=dict(case.overrides), limit=limit)
    known = claims_of(recordings, contract(case.sampler), case.file)
    hidden = text_claims_of(recordings, known, tokenizer)
    started = time.process_time()
    readings = _readings(reference, hidden, tokenizer)
    searched = time.process_time() - started
    own = [claim.claim(claim.texts[0].token_ids(tokenizer.spelling)) for claim in hidden]
    seen = {_key(claim.claim(read.token_ids)): read.scores for claim, read in zip(hidden, readings, strict=True)}
    missing = list({_key(claim): claim for claim in (*known, *own) if _key(claim) not in seen}.values())
    seen |= {_key(claim): scores for claim, scores in zip(missing, replay(reference, missing), strict=True)}
    with_ids = TokenScores.join([seen[_key(claim)] for claim in known])
    from_text = TokenScores.join([read.scores[~read.ambiguous] for read in readings])
    unsearched = TokenScores.join([seen[_key(claim)] for claim in own])
    ids_rate, text_rate, own_rate = (float(s.exact_match.mean()) for s in (with_ids, from_text, unsearched))
    ambiguous = sum(int(read.ambiguous.sum()) for read in readings)
    return {
        "case": case.name, "honest": case.honest, "limit": limit, "answers": len(known), "tokens": len(with_ids),
        "match_with_ids": round(ids_rate, 5), "match_from_text": round(text_rate, 5),
        "match_own_encoding": round(own_rate, 5), "difference": round(text_rate - ids_rate, 5),
        "gain_of_search": round(text_rate - own_rate, 5), "ambiguous": round(ambiguous / len(with_ids), 5),
        "answers_written_otherwise": sum(_key(a) != _key(b) for a, b in zip(known, own, strict=True)),
        "answers_read_otherwise": sum(
            claim.sequence.output_token_ids != read.token_ids for claim, read in zip(known, readings, strict=True)
        ),
        "paths_tried": sum(read.tried for read in readings), "paths_taken": sum(read.taken for read in readings),
        "search_cpu_seconds": round(searched, 1),
    }  # fmt: skip


def _readings(
    reference: TransformersReference, claims: Sequence[TextClaim], tokenizer: ChatTokenizer
) -> list[Reading]:
    found = read_texts(reference, claims, tokenizer.spelling, end_token_ids=tokenizer.end_token_ids)
    refused = [reading for reading in found if not isinstance(reading, Reading)]
    if refused:
        raise refused[0]
    return [reading for reading in found if isinstance(reading, Reading)]


def _key(claim: Claim) -> tuple[object, ...]:
    return (tuple(claim.sequence.prompt_token_ids), tuple(claim.sequence.output_token_ids), claim.seed)


def broken(line: dict[str, Any]) -> list[str]:
    """Which limits a case breaks."""
    found = []
    if line["honest"] and abs(line["difference"]) > MAX_DIFFERENCE:
        found.append("difference")
    if line["honest"] and line["ambiguous"] > MAX_AMBIGUOUS:
        found.append("ambiguous")
    # what the tokenizer's own encoding loses, an honest search may win back; a wrong seed must win nothing at all
    gains = ("difference", "gain_of_search") if "wrong seed" in line["case"] else ("difference",)
    return found + [name for name in gains if not line["honest"] and line[name] > MAX_GAIN]


def main() -> None:
    """Print every case, and save them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=ROOT / "tests/data/golden")
    parser.add_argument("--limit", type=int, help="only the first N recordings of a file")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="all if not given")
    parser.add_argument("--save", action="store_true", help="put the cases into bench/results/hidden_ids.json")
    args = parser.parse_args()
    directory = ensure_demo_model()
    reference, tokenizer = TransformersReference(directory), ChatTokenizer(directory)
    lines = []
    for case in CASES:
        if args.cases is None or case.name in args.cases:
            line = measure(case, args.golden, args.limit, reference, tokenizer)
            lines.append({**line, "broken": broken(line)})
            print(json.dumps(lines[-1]), flush=True)
            if args.save:
                save_case("hidden_ids", lines[-1])
    sys.exit(any(line["broken"] for line in lines))


if __name__ == "__main__":
    main()
