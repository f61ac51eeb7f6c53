"""What ids spell and how text is spelled, for SmolLM2's tokenizer, a byte-level and a SentencePiece-like one."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers_made import CORPUS, byte_level, sentence_piece
from tokenizers_real import gemma_like, mistral, tekken

from verifier.demo_model import ensure_demo_model
from verifier.errors import ReferenceUnreadable, Unsupported
from verifier.spelling import Spelling
from verifier.tokenization import ChatTokenizer

smollm = ChatTokenizer(ensure_demo_model())
KINDS = {
    "smollm2": smollm, "tekken": tekken(), "mistral": mistral(), "gemma-like": gemma_like(),
    "trained byte-level": byte_level(), "trained sentencepiece": sentence_piece(),
}  # fmt: skip
# bytes that SmolLM2 has no token for, among control characters and in planes 4 and up, are no text that it can write
_known = {spelled for spelled in smollm.spelling.token_bytes if len(spelled) == 1}
_written = [c for c in map(chr, range(0x3000)) if all(bytes([byte]) in _known for byte in c.encode())]
texts = st.text(st.sampled_from([*_written, *"漢字한글🍆💡\u200b\ufeff"]), max_size=60) | st.sampled_from(CORPUS)

every_kind = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())


def random_split(data: bytes, spelling: Spelling, seed: int) -> list[int]:
    """Any path of the lattice: at each place any token that spells what follows."""
    chosen, ids, place = random.Random(seed), [], 0
    while place < len(data):
        fitting = [data[place : place + n] for n in range(1, 16) if data[place : place + n] in spelling.ids_by_bytes]
        piece = chosen.choice(fitting)
        ids.append(spelling.ids_by_bytes[piece])
        place += len(piece)
    return ids


@every_kind
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_what_is_encoded_spells_the_text_to_the_byte(tokenizer, text):
    assert tokenizer.spelling.spell(tokenizer.spelling.encode(text)).decode() == text


@every_kind
@settings(max_examples=60, deadline=None)
@given(text=texts, seed=st.integers(0, 2**32))
def test_every_split_spells_the_text_that_the_tokenizer_decodes(tokenizer, text, seed):
    spelling = tokenizer.spelling
    ids = random_split(text.encode(), spelling, seed)
    assert spelling.spell(ids).decode() == text
    assert spelling.ends(ids).tolist()[-1:] == [len(text.encode())][: len(ids)]
    assert tokenizer.decode(ids).removeprefix(" ") == text.removeprefix(" ")


@every_kind
@settings(max_examples=40, deadline=None)
@given(text=texts, cut=st.integers(0, 80))
def test_a_text_cut_inside_a_character_is_spelled_too(tokenizer, text, cut):
    data = text.encode()[cut:]
    assert tokenizer.spelling.spell(tokenizer.spelling.encode_bytes(data)) == data


@every_kind
def test_batches_are_spelled_as_single_texts_are(tokenizer):
    assert tokenizer.spelling.encode_batch(CORPUS) == [tokenizer.spelling.encode(text) for text in CORPUS]


def test_a_continuation_has_no_space_put_in_front():
    spelling = sentence_piece().spelling
    assert spelling.spell(spelling.encode("The dog")) == b"The dog"


@pytest.mark.parametrize("name", ["smollm2", "tekken", "gemma-like"])
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_answers_are_encoded_as_the_tokenizer_itself_does(name, text):
    assert KINDS[name].spelling.encode(text) == KINDS[name].encode(text)


@settings(max_examples=60, deadline=None)
@given(text=texts.filter(lambda text: not text.startswith((" ", "▁"))))
def test_mistral_and_llama_2_put_a_space_before_a_text_but_not_before_what_continues_one(text):
    tokenizer = KINDS["mistral"]
    assert tokenizer.encode(text) == (tokenizer.spelling.encode(" " + text) if text else [])


def test_smollm_writes_what_vllm_wrote():
    assert smollm.spelling.encode("Explain photosynthesis") == smollm.encode("Explain photosynthesis")


def test_what_looks_like_a_special_token_in_an_answer_is_plain_text():
    end = smollm.end_token_ids[0]
    ids = smollm.spelling.encode("a <|im_end|> b")
    assert end not in ids
    assert smollm.spelling.spell(ids, special=False) == b"a <|im_end|> b"
    assert smollm.spelling.spell([end], special=False) == b""
    assert smollm.spelling.spell([end]) == b"<|im_end|>"


def test_ids_beyond_the_vocabulary_spell_nothing():
    assert smollm.spelling.spell([10**9, -1, *smollm.spelling.encode("x")]) == b"x"


def test_lone_surrogates_have_a_reason():
    with pytest.raises(Unsupported, match="text_not_unicode"):
        smollm.spelling.encode("a\ud800b")
    with pytest.raises(Unsupported, match="text_not_unicode"):
        smollm.encode("a\ud800b")


@pytest.mark.parametrize("flood", ["\u200b", "a", " ", "\n", "é", "<|im_end|>", "🍆"])
def test_floods_take_linear_time(flood):
    def seconds(size: int) -> float:
        started = time.process_time()
        assert smollm.spelling.encode(flood * (size // len(flood.encode())))
        return time.process_time() - started

    seconds(10_000)
    assert seconds(640_000) < 0.25 + 24 * seconds(80_000)


def test_a_decoder_of_another_kind_is_unsupported():
    other = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    other.decoder = decoders.CTC()
    with pytest.raises(Unsupported, match="tokenizer_not_spellable"):
        Spelling(other)


def test_text_without_tokens_is_unsupported():
    with pytest.raises(Unsupported, match="text_not_spellable"):
        smollm.spelling.encode("\x1d")
    bare = Tokenizer(models.BPE({"Ġ": 0, "a": 1}, []))
    bare.decoder = decoders.ByteLevel()
    with pytest.raises(Unsupported, match="text_not_spellable"):
        Spelling(bare).encode("ab")


def test_a_directory_without_tokenizer_says_so(tmp_path):
    with pytest.raises(ReferenceUnreadable, match="holds no tokenizer"):
        ChatTokenizer(tmp_path)


def test_end_tokens_are_those_of_tokenizer_and_generation_config(demo_directory):
    assert smollm.end_token_ids[0] == smollm.marker_ids["<|im_end|>"]
