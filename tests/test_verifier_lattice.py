"""The search for the tokenization that was sampled: on simulated draws of any split, and on recorded outputs."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import golden
from test_verifier_tokenization import CORPUS, KINDS

from verifier.answers import AnswerText, answer_texts
from verifier.errors import BadSequence
from verifier.lattice import MAX_DEPTH, MAX_TRIED, Reading, Tail, evidence, search
from verifier.recordings import Recording, read_recordings
from verifier.samplers import contract
from verifier.scoring import TokenScores
from verifier.spelling import Spelling
from verifier.tokenization import ChatTokenizer
from verifier.verify import verify_file, verify_hidden

TEXT = " ".join(CORPUS)


def scores_of(tail: Tail, predicted: list[int], chance: float) -> TokenScores:
    claimed = np.array(tail.token_ids[tail.first :], np.int64)
    real = np.full(len(claimed), chance, np.float32)
    rank = np.zeros(len(claimed), np.int32)
    return TokenScores(claimed, np.array(predicted, np.int64), real, np.log(real), real, real * 0, rank, real)


def read(text: AnswerText, spelling: Spelling, predict: Callable[[Tail], list[int]], chance: float = 0.1) -> Reading:
    """Run a search whose model predicts by `predict` and finds every claimed token as likely as `chance`."""
    return read_any([text], spelling, predict, chance)


def read_any(
    texts: list[AnswerText], spelling: Spelling, predict: Callable[[Tail], list[int]], chance: float = 0.1,
    end_token_ids: Sequence[int] = (),
) -> Reading:  # fmt: skip
    running = search(texts, spelling, end_token_ids=end_token_ids)
    tail = next(running)
    while True:
        try:
            tail = running.send(scores_of(tail, predict(tail), chance))
        except StopIteration as done:
            return done.value


def drawn(truth: list[int], spelling: Spelling, noise: float, seed: int) -> Callable[[Tail], list[int]]:
    """A sampler that drew `truth`: in step with it, all but a share `noise` is predicted; out of step, chance is."""

    def predict(tail: Tail) -> list[int]:
        chosen = random.Random(seed)
        wild = [chosen.randrange(len(spelling.token_bytes)) for _ in range(len(tail.token_ids))]
        same = next((i for i, (a, b) in enumerate(zip(tail.token_ids, truth)) if a != b), len(truth))  # noqa: B905
        found = [truth[i] if i <= same and i < len(truth) and chosen.random() >= noise else wild[i]
                 for i in range(len(tail.token_ids))]  # fmt: skip
        return found[tail.first :]

    return predict


def resplit(ids: list[int], spelling: Spelling, places: list[int]) -> list[int]:
    """The path with the tokens at some places written as two shorter ones."""
    found: list[int] = []
    for place, token in enumerate(ids):
        spelled, known = spelling.token_bytes[token], spelling.ids_by_bytes
        cuts = [n for n in range(1, len(spelled)) if spelled[:n] in known and spelled[n:] in known]
        found += [known[spelled[: cuts[0]]], known[spelled[cuts[0] :]]] if place in places and cuts else [token]
    return found


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())
@settings(max_examples=40, deadline=None)
@given(places=st.lists(st.integers(0, 60), max_size=6), start=st.integers(0, 200))
def test_splits_of_merges_are_found_wherever_they_are(tokenizer, places, start):
    spelling, text = tokenizer.spelling, AnswerText(TEXT[start:].encode())
    truth = resplit(text.token_ids(spelling), spelling, places)
    reading = read(text, spelling, drawn(truth, spelling, 0.0, start))
    assert reading.token_ids == truth
    assert reading.scores.exact_match.all()
    assert not reading.ambiguous.any()


@pytest.mark.parametrize("place", [12, 40, 80])
def test_a_split_is_found_where_rounding_hides_its_prediction(place):
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    truth = resplit(text.token_ids(spelling), spelling, [place])
    fork = next(n for n, (a, b) in enumerate(zip(text.token_ids(spelling), truth, strict=False)) if a != b)
    in_step = drawn(truth, spelling, 0.0, 1)

    def near_tie(tail: Tail) -> list[int]:
        predicted = in_step(tail)
        if tail.first <= fork:
            predicted[fork - tail.first] = 5  # spells nothing of the text
        return predicted

    reading = read(text, spelling, near_tie)
    assert reading.token_ids == truth
    assert (~reading.scores.exact_match).sum() == 1
    assert not reading.lost_step


def test_one_unlikely_match_leads_no_path_out_of_step():
    """Rounding decides for a shorter token that fits the text: its match shows much, but nothing behind it does."""
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    truth = text.token_ids(spelling)
    fork = next(n for n in range(40, 80) if resplit(truth, spelling, [n]) != truth)
    in_step, shorter = drawn(truth, spelling, 0.0, 1), resplit(truth, spelling, [fork])[fork]

    def near_tie(tail: Tail) -> list[int]:
        predicted = in_step(tail)
        if tail.first <= fork:
            predicted[fork - tail.first] = shorter
        return predicted

    reading = read(text, spelling, near_tie, chance=0.002)
    assert reading.tried == 1
    assert reading.token_ids == truth
    assert not reading.lost_step


def split_elsewhere(ids: list[int], spelling: Spelling, first: int) -> tuple[list[int], int]:
    """The path with two tokens written as two others, and where."""
    table, known = spelling.token_bytes, spelling.ids_by_bytes
    for place in range(first, len(ids) - 1):
        both, cut = table[ids[place]] + table[ids[place + 1]], len(table[ids[place]])
        for n in range(1, len(both)):
            if n != cut and both[:n] in known and both[n:] in known:
                return [*ids[:place], known[both[:n]], known[both[n:]], *ids[place + 2 :]], place
    raise AssertionError("no such place")


def drawn_by_place(truth: list[int], fork: int) -> Callable[[Tail], list[int]]:
    """A sampler in step wherever the last three tokens and their number are right; rounding hides `truth[fork]`."""

    def predict(tail: Tail) -> list[int]:
        ids = tail.token_ids
        right = [i < len(truth) and i != fork and ids[max(0, i - 3) : i] == truth[max(0, i - 3) : i]
                 for i in range(len(ids))]  # fmt: skip
        return [truth[i] if right[i] else 5 for i in range(tail.first, len(ids))]

    return predict


def test_a_stretch_that_comes_back_in_step_by_itself_is_mended_and_what_follows_it_is_kept():
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    truth, fork = split_elsewhere(text.token_ids(spelling), spelling, 30)
    odd = next(n for n in range(fork + 40, len(truth)) if resplit(truth, spelling, [n]) != truth)
    truth = resplit(truth, spelling, [odd])
    reading = read(text, spelling, drawn_by_place(truth, fork), chance=0.02)
    assert reading.token_ids == truth
    assert np.flatnonzero(~reading.scores.exact_match).tolist() == [fork]
    assert reading.taken == 2  # the odd token behind the stretch was not lost by mending it
    assert not reading.ambiguous.any()


def test_where_no_token_mends_it_the_rest_is_ambiguous():
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    ids = text.token_ids(spelling)
    (unseen,) = spelling.encode("@")
    reading = read(text, spelling, drawn([*ids[:50], unseen, *ids[50:]], spelling, 0.0, 1))
    assert reading.lost_step
    assert reading.ambiguous.tolist() == [n >= 50 for n in range(len(ids))]
    assert reading.tried <= MAX_TRIED + MAX_DEPTH


def test_a_special_token_that_left_no_trace_in_the_text_is_found():
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    special = min(spelling.special_ids)
    ids = text.token_ids(spelling)
    truth = [*ids[:50], special, *resplit(ids[50:], spelling, [30])]
    reading = read(text, spelling, drawn(truth, spelling, 0.0, 1))
    assert reading.token_ids == truth
    assert reading.scores.exact_match.all()
    assert not reading.ambiguous.any()
    known_end = read_any([text], spelling, drawn(truth, spelling, 0.0, 1), end_token_ids=[special])
    assert known_end.lost_step


def test_the_tokenizers_own_path_needs_one_pass():
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    reading = read(text, spelling, drawn(text.token_ids(spelling), spelling, 0.02, 1))
    assert reading.tried <= 1
    assert reading.taken == 0


def test_honest_noise_does_not_lead_the_search_astray():
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    for seed in range(20):
        truth = resplit(text.token_ids(spelling), spelling, [seed, seed + 30])
        reading = read(text, spelling, drawn(truth, spelling, 0.02, seed))
        expected = np.mean(drawn(truth, spelling, 0.02, seed)(Tail(truth, 0)) == np.array(truth))
        assert reading.scores.exact_match.mean() >= expected - 0.15


def test_wrong_seeds_buy_nothing_even_where_most_predictions_fit_the_text():
    """Predictions owe nothing to the seed, but half of the mismatching ones spell a shorter beginning of the token."""
    spelling, text = KINDS["smollm2"].spelling, AnswerText((TEXT * 2).encode())
    before = after = kept = ambiguous = 0
    for seed in range(60):
        reading, first = _unseeded(text, spelling, seed)
        assert reading.tried < MAX_TRIED + MAX_DEPTH
        before += first
        after += reading.scores.exact_match[~reading.ambiguous].mean()
        kept += 1
        ambiguous += reading.ambiguous.mean()
    assert after / kept - before / kept <= 0.005
    assert ambiguous / kept <= 0.01


def _unseeded(text: AnswerText, spelling: Spelling, seed: int) -> tuple[Reading, float]:
    chosen, rates = random.Random(seed), []

    def predict(tail: Tail) -> list[int]:
        found = []
        for token in tail.token_ids[tail.first :]:
            spelled, draw = spelling.token_bytes[token], chosen.random()
            shorter = spelling.ids_by_bytes.get(spelled[: max(1, len(spelled) // 2)], token)
            fits = shorter != token and draw < 0.7
            found.append(token if draw < 0.4 else shorter if fits else chosen.randrange(40000))
        rates.append(float(np.mean(np.array(found) == tail.token_ids[tail.first :])))
        return found

    return read(text, spelling, predict, chance=0.4), rates[0]


def test_evidence_grows_with_matches_of_unlikely_tokens_and_is_fair_without_the_seed():
    rng = np.random.default_rng(1)
    chances = rng.uniform(0.5, 0.9, (20000, 6))
    ratios = [np.exp(evidence(match, p)) for match, p in zip(rng.random(chances.shape) < chances, chances, strict=True)]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.2)
    assert np.mean(np.array(ratios) > np.exp(5)) <= np.exp(-5)
    assert evidence(np.array([True]), np.array([0.01])) > 4


def test_a_special_token_is_no_alternative_to_the_text_that_looks_like_it():
    tokenizer = KINDS["smollm2"]
    spelling, end = tokenizer.spelling, tokenizer.end_token_ids[0]
    text = AnswerText(b"a <|im_end|>")
    always = [end] * 100
    reading = read_any([text], spelling, lambda tail: always[: len(tail.token_ids) - tail.first], end_token_ids=[end])
    assert reading.tried == 0
    assert end not in reading.token_ids


def test_no_token_swallows_a_mark():
    spelling = KINDS["smollm2"].spelling
    text = AnswerText(b"ab<|im_end|>", ((2, KINDS["smollm2"].end_token_ids[0]),))
    assert text.allows(b"ab", 0)
    assert not text.allows(b"ab<", 0)
    assert not text.allows(b"<", 2)
    assert text.token_ids(spelling)[-1] == KINDS["smollm2"].end_token_ids[0]


def test_the_end_token_is_the_one_that_the_contract_predicts():
    spelling = KINDS["smollm2"].spelling
    text = AnswerText(b"Hello<|im_end|>", ((5, 2),))
    running = search([text], spelling, end_token_ids=(2, 0))
    tail = next(running)
    tail = running.send(scores_of(tail, [*tail.token_ids[:-1], 0], 0.1))
    assert tail.token_ids[-1] == 0
    with pytest.raises(StopIteration) as done:
        running.send(scores_of(tail, [0], 0.1))
    assert done.value.value.scores.exact_match.all()


def test_another_layout_is_taken_where_the_first_falls_out_of_step():
    spelling = KINDS["smollm2"].spelling
    start = b"<think>"
    likely = AnswerText(start + b"\n\n" + TEXT.encode(), inferred=((0, 9),))
    real = AnswerText(start + TEXT.encode(), inferred=((0, 7),))
    truth = real.token_ids(spelling)
    reading = read_any([likely, real], spelling, drawn(truth, spelling, 0.0, 1))
    assert reading.token_ids == truth
    assert 0 < reading.ambiguous.sum() < 10


def test_a_path_that_the_reference_cannot_take_is_left_and_a_first_one_comes_back():
    spelling, text = KINDS["smollm2"].spelling, AnswerText(TEXT.encode())
    truth = resplit(text.token_ids(spelling), spelling, [5])
    running = search([text], spelling)
    running.send(None)
    running.send(scores_of(tail := Tail(text.token_ids(spelling), 0), drawn(truth, spelling, 0.0, 1)(tail), 0.1))
    with pytest.raises(StopIteration) as done:  # noqa: PT012
        for _ in range(MAX_TRIED + 1):
            running.throw(BadSequence("too long"))
    assert done.value.value.token_ids == text.token_ids(spelling)
    running = search([text], spelling)
    next(running)
    with pytest.raises(BadSequence):
        running.throw(BadSequence("too long"))


def test_recorded_outputs_are_found_again_from_their_text(demo_directory, demo_reference):
    tokenizer, rules = ChatTokenizer(demo_directory), contract("vllm@0.26.0/v2")
    recordings = [r for r in read_recordings(golden("v2_plain")) if _another_path(r, tokenizer)]
    shortest = sorted(recordings, key=lambda r: len(r.sequence.output_token_ids))[:1]
    known = verify_file("v2_plain", shortest, demo_reference, rules)
    hidden = verify_hidden("v2_plain", shortest, demo_reference, rules, tokenizer)
    assert hidden.exact_match_rate == pytest.approx(known.exact_match_rate, abs=0.003)
    assert hidden.ambiguous_tokens <= 0.01 * known.tokens


def _another_path(recording: Recording, tokenizer: ChatTokenizer) -> bool:
    """Whether the model wrote the text otherwise than the tokenizer would."""
    ids, end = recording.sequence.output_token_ids, list(tokenizer.end_token_ids[:1])
    encoded = tokenizer.spelling.encode(recording.text or "")
    return ids not in (encoded, encoded + end)


def behind_a_guess(guess: bytes, real: bytes) -> tuple[AnswerText, list[int]]:
    """An answer with a stretch in its middle that no client saw, and what was really drawn."""
    spelling, head, rest = KINDS["smollm2"].spelling, TEXT[:300].encode(), TEXT[300:600].encode()
    text = AnswerText(head + guess + rest, inferred=((len(head), len(head + guess)),))
    return text, [id_ for part in (head, real, rest) for id_ in spelling.encode_bytes(part)]


def test_a_wrong_guess_loses_step_and_what_follows_is_ambiguous_not_wrong():
    spelling = KINDS["smollm2"].spelling
    text, truth = behind_a_guess(b"</think>\n\n", b"</reasoning>\n\n\n")
    reading = read(text, spelling, drawn(truth, spelling, 0.0, 1))
    assert reading.lost_step
    assert reading.scores.exact_match[~reading.ambiguous].all()
    assert 0.3 < reading.ambiguous.mean() < 0.7


def test_a_right_guess_and_a_wrong_seed_lose_no_step():
    spelling = KINDS["smollm2"].spelling
    text, truth = behind_a_guess(b"</think>\n\n", b"</think>\n\n")
    right = read(text, spelling, drawn(truth, spelling, 0.0, 1))
    assert not right.lost_step
    assert right.ambiguous.mean() < 0.1
    wrong = read(text, spelling, drawn([*spelling.encode("@"), *truth], spelling, 0.0, 1))
    assert not wrong.lost_step
    assert wrong.ambiguous.mean() < 0.1
    assert wrong.scores.exact_match[~wrong.ambiguous].mean() < 0.1


def test_whitespace_drawn_in_place_of_the_end_token_may_have_been_trimmed():
    spelling = KINDS["smollm2"].spelling
    (newline,) = spelling.encode("\n")
    for predicted, unclear in ((newline, True), (spelling.encode("x")[0], False)):
        running = search([AnswerText(b"Hello<|im_end|>", ((5, 2),))], spelling, end_token_ids=(2,))
        tail = next(running)
        with pytest.raises(StopIteration) as done:
            running.send(scores_of(tail, [*tail.token_ids[:-1], predicted], 0.1))
        assert done.value.value.ambiguous.tolist() == [False] * (len(tail.token_ids) - 1) + [unclear]


def test_a_first_space_that_decoding_dropped_is_found_again():
    mistral = KINDS["mistral"]
    texts = answer_texts({"text": TEXT[:200], "finish_reason": "length"}, mistral)
    assert [text.data[:4] for text in texts] == [b"The ", b" The"]
    truth = mistral.encode(TEXT[:200])
    assert mistral.spelling.spell(truth[:1]) == b" The"
    reading = read_any(texts, mistral.spelling, drawn(truth, mistral.spelling, 0.0, 1))
    assert reading.token_ids == truth
