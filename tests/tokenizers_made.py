"""Small tokenizers of both kinds, trained in place: byte-level BPE, and SentencePiece-like with byte fallback."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from verifier.tokenization import ChatTokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 3,
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.\n\nIt happens in leaves.",
    "def main():\n    for number in range(10):\n        print(number, 'ok')\n",
    "Über größere Straßen führt der Weg nach Zürich; naïve café déjà vu — “quoted” … 12,345.67",
]
SPECIAL = ["<s>", "</s>"]


@cache
def byte_level() -> ChatTokenizer:
    """GPT-2's kind, with one visible added token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    made.add_tokens(["<think>", "</think>"])
    return wrapped(made)


@cache
def sentence_piece() -> ChatTokenizer:
    """Gemma's and Llama 2's kind: "▁" for spaces, one put in front of a text, bytes for what no piece covers."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(unk_token=None, byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = [word + " " for text in CORPUS for word in text.split(" ")]
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *bytes_]))
    return wrapped(plain_bytes(made, bytes_))


def plain_bytes(made: Tokenizer, pieces: list[str]) -> Tokenizer:
    """Byte pieces as ordinary vocabulary, as SentencePiece has them: trainers know only special tokens."""
    import json

    described = json.loads(made.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] not in pieces]
    return Tokenizer.from_str(json.dumps(described))


def wrapped(made: Tokenizer) -> ChatTokenizer:
    return ChatTokenizer.of(PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>"))
