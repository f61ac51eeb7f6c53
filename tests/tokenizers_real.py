"""Real tokenizers of the test data (tests/data/README.md says where they come from), under their models' rules."""

import gzip
import json
from functools import cache
from typing import Any

from recorded import HERE
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from verifier.tokenization import ChatTokenizer

ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@cache
def mistral() -> ChatTokenizer:
    """SentencePiece as Mistral 7B and Llama 2 use it: a space is put in front of a text, and decoding drops it."""
    return _wrapped(_described("mistral-7b"))


@cache
def gemma_like() -> ChatTokenizer:
    """The same vocabulary under Gemma's rules: spaces are replaced before anything else, none is added or dropped."""
    described = _described("mistral-7b")
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    described["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False
    }  # fmt: skip
    described["decoder"] = {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return _wrapped(described)


@cache
def tekken() -> ChatTokenizer:
    """Byte-level, with Mistral Nemo's splitting rule: digits stand alone, words split where capitals begin."""
    return _wrapped(_described("tekken-24k"))


def _described(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((HERE / "tokenizers" / f"{name}.json.gz").read_bytes()))


def _wrapped(described: dict[str, Any]) -> ChatTokenizer:
    return ChatTokenizer.of(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)), **ENDS)
    )
