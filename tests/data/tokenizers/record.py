"""Writes the tokenizers beside it: python tests/data/tokenizers/record.py FOLDER

FOLDER is `mistral_common/data` of PyPI's mistral-common 1.13.1 (Apache-2.0); sentencepiece and protobuf must be
installed. mistral-7b is its SentencePiece model v1, converted by transformers; tekken is the beginning of its
byte-level vocabulary tekken_240911: the first 24,000 ranks of a BPE are a BPE too.
"""

import base64
import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

RANKS = 24_000
SPECIAL = ["<unk>", "<s>", "</s>"]


def sentence_piece(source: Path) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(source, Path(folder) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(folder).backend_tokenizer


def byte_level(source: Path) -> Tokenizer:
    described = json.loads(source.read_text())
    letters = bytes_to_unicode()
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in described["vocab"][:RANKS]}
    pairs = [
        (ranks[piece[:cut]], ranks[piece[cut:]], rank, piece, cut)
        for piece, rank in ranks.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    spelled = ["".join(letters[byte] for byte in piece) for piece in ranks]
    merges = [
        ("".join(letters[b] for b in piece[:cut]), "".join(letters[b] for b in piece[cut:]))
        for *_, piece, cut in sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))
    ]
    made = Tokenizer(models.BPE({piece: n + len(SPECIAL) for n, piece in enumerate(spelled)}, merges))
    split = pre_tokenizers.Split(Regex(described["config"]["pattern"]), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    return with_special(made)


def with_special(made: Tokenizer) -> Tokenizer:
    """The special tokens take the first ids, as in tekken."""
    described = json.loads(made.to_str())
    described["model"]["vocab"] = {piece: n for n, piece in enumerate(SPECIAL)} | described["model"]["vocab"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    described["added_tokens"] = [{"id": n, "content": piece, **flags} for n, piece in enumerate(SPECIAL)]
    return Tokenizer.from_str(json.dumps(described))


def main(folder: str) -> None:
    made = {
        "mistral-7b": sentence_piece(Path(folder) / "tokenizer.model.v1"),
        "tekken-24k": byte_level(Path(folder) / "tekken_240911.json"),
    }
    for name, tokenizer in made.items():
        path = Path(__file__).parent / f"{name}.json.gz"
        path.write_bytes(gzip.compress(tokenizer.to_str().encode(), 9, mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
