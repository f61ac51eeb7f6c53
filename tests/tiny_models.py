"""Models small enough for tests, saved as any other."""

import shutil
from pathlib import Path


def make_tiny_model(tokenizer_from: Path, directory: Path, *, seed: int) -> Path:
    """A random two-layer Llama (hidden size 32) with the tokenizer of another model's directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=2, bos_token_id=1, initializer_range=1.0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(tokenizer_from / name, directory)
    return directory
