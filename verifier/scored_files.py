"""Recorded answers with their scores: scored on a trusted model, or read from the file that an earlier run kept.

A kept file (.npz) holds what `calibrate` and `evaluate` need of one recordings file: per answer its prompt, its
sampling parameters and the scores of its tokens. It stands wherever a recordings file may, and needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.band import distribution
from verifier.detectors import SequenceScores
from verifier.errors import InputError
from verifier.evaluate import Answer
from verifier.lattice import Reading
from verifier.reading import read_texts
from verifier.recordings import Recording
from verifier.replay import Claim, Reference, replay
from verifier.resync import follow
from verifier.samplers import SamplerContract
from verifier.samplers import contract as sampler_contract
from verifier.stream_identity import accuses_nobody, identity_of, matches_too_little
from verifier.stream_state import AuditedAnswer
from verifier.tokenization import ChatTokenizer
from verifier.verify import claims_of, text_claims_of

FLAGS = ("retokenized", "other_sampler")
FIELDS = ("exact_match", "margin", "logprob", "entropy", "logit_rank", "prob")


@dataclass(frozen=True)
class ScoredFile:
    """The answers of one recordings file.

    Args:
        sampler: id of the contract that they were scored under.
        identified: what suspicious answers said of their contract (`verifier.stream_identity`), if they were asked.
    """

    sampler: str
    answers: list[Answer]
    identified: Mapping[str, Any] | None = None

    @property
    def token_source(self) -> str:
        """`retokenized` where ids were found from the text, else `given`, as `storage.models.TokenSource` has it."""
        return "retokenized" if any(answer.audited.retokenized for answer in self.answers) else "given"

    def save(self, path: Path) -> None:
        """Keep it as .npz."""
        prompts = [answer.prompt for answer in self.answers]
        columns: dict[str, Any] = {
            name: np.concatenate([_field(answer, name) for answer in self.answers]) for name in FIELDS
        }
        columns |= {flag: np.array([getattr(answer.audited, flag) for answer in self.answers]) for flag in FLAGS}
        np.savez_compressed(
            path,
            sampler=np.array(self.sampler),
            identified=np.array(json.dumps(self.identified)),
            sampling=np.array([json.dumps(answer.audited.sampling) for answer in self.answers]),
            prompt=np.array([token for prompt in prompts for token in prompt], np.int64),
            prompt_length=np.array([len(prompt) for prompt in prompts]),
            length=np.array([len(answer.audited.prob) for answer in self.answers]),
            **columns,
        )

    @classmethod
    def load(cls, path: Path) -> ScoredFile:
        """What `save` kept. Raises InputError."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                answers = _answers({name: arrays[name] for name in arrays})
                return cls(str(arrays["sampler"]), answers, json.loads(str(arrays["identified"])))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} holds no kept scores ({error}): make it with --keep-scores") from error


def _field(answer: Answer, name: str) -> NDArray[Any]:
    values: NDArray[Any] = answer.audited.prob if name == "prob" else getattr(answer.scores, name)
    return values


def _answers(arrays: Mapping[str, NDArray[Any]]) -> list[Answer]:
    ends = np.cumsum(arrays["length"])[:-1]
    *scores, probs = (np.split(arrays[name], ends) for name in FIELDS)
    prompts = np.split(arrays["prompt"], np.cumsum(arrays["prompt_length"])[:-1])
    flags: list[dict[str, Any]] = [
        dict(zip(FLAGS, map(bool, row), strict=True)) for row in zip(*(arrays[flag] for flag in FLAGS), strict=True)
    ]
    rows = zip(prompts, zip(*scores, strict=True), probs, arrays["sampling"], flags, strict=True)
    return [
        Answer(tuple(map(int, prompt)), AuditedAnswer(SequenceScores(*row), prob, json.loads(str(sampling)), **told))
        for prompt, row, prob, sampling, told in rows
    ]


def score_file(
    file: str, recordings: Sequence[Recording], reference: Reference, contract: SamplerContract,
    on_tokens: Callable[[int], None] | None = None,
) -> ScoredFile:  # fmt: skip
    """Score recordings on a trusted model. Raises InputError where no recording has tokens, or one cannot be scored."""
    claims = [claim for claim in claims_of(recordings, contract, file) if claim.sequence.output_token_ids]
    if not claims:
        raise InputError(f"{file} holds no answer with tokens: give a file of recorded outputs")
    for number, claim in enumerate(claims):
        reference.check(number, claim.sequence)
    scored = ScoredFile(contract.id, _answers_to(claims, reference, on_tokens))
    return _asked_for_their_sampler(scored, claims, reference)


def _answers_to(
    claims: Sequence[Claim], reference: Reference, on_tokens: Callable[[int], None] | None = None
) -> list[Answer]:
    """Replayed, and followed where an engine wasted draws, as in an audit."""
    followed = [
        follow(reference, claim, plain).scores
        for claim, plain in zip(claims, replay(reference, claims, on_tokens), strict=True)
    ]
    return [
        Answer(tuple(claim.sequence.prompt_token_ids), AuditedAnswer.of(scores, distribution(claim.params)))
        for claim, scores in zip(claims, followed, strict=True)
    ]


def _asked_for_their_sampler(scored: ScoredFile, claims: Sequence[Claim], reference: Reference) -> ScoredFile:
    """As the auditor does: answers that match less than honest ones are asked which contract drew them.

    Where that is the same engine's with a drafter, they are scored again by it; where it is another, they are marked.
    """
    suspects = [number for number, answer in enumerate(scored.answers) if matches_too_little(answer.scores.exact_match)]
    asked = [claims[number] for number in suspects if not claims[number].params.is_greedy]
    found = identity_of(reference, asked, scored.sampler)
    scored, answers = replace(scored, identified=found), list(scored.answers)
    if found is not None and accuses_nobody(found):
        for number in suspects:
            answers[number] = replace(answers[number], audited=replace(answers[number].audited, other_sampler=True))
    elif found is not None and found["reason"] is None and found["contract"] != scored.sampler:
        rules = sampler_contract(found["contract"])
        again = [replace(claims[number], contract=rules) for number in suspects]
        for number, answer in zip(suspects, _answers_to(again, reference), strict=True):
            answers[number] = max(answers[number], answer, key=lambda one: float(one.scores.exact_match.mean()))
    return replace(scored, answers=answers)


def score_texts(
    file: str, recordings: Sequence[Recording], reference: Reference, contract: SamplerContract,
    tokenizer: ChatTokenizer, on_tokens: Callable[[int], None] | None = None,
) -> ScoredFile:  # fmt: skip
    """As `score_file`, from messages and text alone; tokens that the text leaves open are left out."""
    claims = text_claims_of(recordings, claims_of(recordings, contract, file), tokenizer)
    readings = read_texts(
        reference, claims, tokenizer.spelling, end_token_ids=tokenizer.end_token_ids, on_tokens=on_tokens
    )
    answers = []
    for number, (claim, reading) in enumerate(zip(claims, readings, strict=True)):
        if not isinstance(reading, Reading):
            raise InputError(f"{file}: recording {number} cannot be read from its text: {reading}") from reading
        clear = AuditedAnswer.of(reading.scores[~reading.ambiguous], distribution(claim.params))
        answers.append(Answer(tuple(claim.prompt_token_ids), replace(clear, retokenized=True)))
    return ScoredFile(contract.id, [answer for answer in answers if len(answer.audited.prob)])
