"""The transformers reference: rows of logits do not depend on what else is in the batch, nor on how they are cut."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from verifier.errors import ReferenceUnreadable
from verifier.reference import TransformersReference, packed
from verifier.sequences import TokenSequence

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip
SEQUENCES = [
    TokenSequence([1, 2, 3], [4, 5, 6, 7, 8]),
    TokenSequence([9], [10]),
    TokenSequence([1, 2], []),
    TokenSequence([5] * 20, [6] * 30),
]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def directory(request, tmp_path_factory):
    """Random weights of two families: Gemma 2 caps its logits after the head, so the head cannot be split off."""
    torch.manual_seed(0)
    llama = request.param == "llama"
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)) if llama else Gemma2ForCausalLM(Gemma2Config(**SHAPE))
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return path


def alone(directory, sequence: TokenSequence) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([sequence.prompt_token_ids + sequence.output_token_ids])
    with torch.inference_mode():
        return model(ids).logits[0, len(sequence.prompt_token_ids) - 1 : -1]


def test_each_output_token_gets_the_logits_of_its_own_sequence_alone(directory):
    pieces = list(TransformersReference(directory).logits(SEQUENCES))
    assert {piece.sequence for piece in pieces} == {0, 1, 3}
    for number in (0, 1, 3):
        rows = torch.cat([piece.logits for piece in pieces if piece.sequence == number])
        torch.testing.assert_close(rows, alone(directory, SEQUENCES[number]), atol=2e-5, rtol=0)


def test_chunks_come_in_order_and_hold_at_most_their_share_of_memory(directory):
    reference = TransformersReference(directory, chunk_bytes=4 * 97 * 7)
    pieces = [piece for piece in reference.logits(SEQUENCES) if piece.sequence == 3]
    assert [piece.first for piece in pieces] == [0, 7, 14, 21, 28]
    assert max(len(piece.logits) for piece in pieces) == 7
    torch.testing.assert_close(
        torch.cat([piece.logits for piece in pieces]), alone(directory, SEQUENCES[3]), atol=2e-5, rtol=0
    )


def test_batches_stay_within_their_token_budget():
    batches = list(packed([TokenSequence([1] * n, [2]) for n in (30, 10, 31, 29, 1)], 60))
    assert sorted(number for batch in batches for number in batch) == [0, 1, 2, 3, 4]
    assert batches[0] == [2]


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ReferenceUnreadable, match=r"config\.json is missing"):
        TransformersReference(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ReferenceUnreadable, match="cannot be loaded"):
        TransformersReference(tmp_path)
