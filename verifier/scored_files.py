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
from verifier.samplers import SamplerContract
from verifier.stream_state import AuditedAnswer
from verifier.tokenization import ChatTokenizer
from verifier.verify import claims_of, text_claims_of

FIELDS = ("exact_match", "margin", "logprob", "entropy", "logit_rank", "prob")


@dataclass(frozen=True)
class ScoredFile:
    """The answers of one recordings file; `sampler` is the id of the contract that they were scored under."""

    sampler: str
    answers: list[Answer]

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
        np.savez_compressed(
            path,
            sampler=np.array(self.sampler),
            sampling=np.array([json.dumps(answer.audited.sampling) for answer in self.answers]),
            retokenized=np.array([answer.audited.retokenized for answer in self.answers]),
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
                return cls(str(arrays["sampler"]), _answers({name: arrays[name] for name in arrays}))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} holds no kept scores ({error}): make it with --keep-scores") from error


def _field(answer: Answer, name: str) -> NDArray[Any]:
    values: NDArray[Any] = answer.audited.prob if name == "prob" else getattr(answer.scores, name)
    return values


def _answers(arrays: Mapping[str, NDArray[Any]]) -> list[Answer]:
    ends = np.cumsum(arrays["length"])[:-1]
    *scores, probs = (np.split(arrays[name], ends) for name in FIELDS)
    prompts = np.split(arrays["prompt"], np.cumsum(arrays["prompt_length"])[:-1])
    rows = zip(prompts, zip(*scores, strict=True), probs, arrays["sampling"], arrays["retokenized"], strict=True)
    return [
        Answer(
            tuple(map(int, prompt)),
            AuditedAnswer(SequenceScores(*row), prob, json.loads(str(sampling)), retokenized=bool(retokenized)),
        )
        for prompt, row, prob, sampling, retokenized in rows
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
    scores = replay(reference, claims, on_tokens)
    audited = [AuditedAnswer.of(one, distribution(claim.params)) for one, claim in zip(scores, claims, strict=True)]
    return ScoredFile(contract.id, _paired(claims, audited))


def _paired(claims: Sequence[Claim], audited: Sequence[AuditedAnswer]) -> list[Answer]:
    return [
        Answer(tuple(claim.sequence.prompt_token_ids), one) for claim, one in zip(claims, audited, strict=True)
    ]


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
