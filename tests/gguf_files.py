"""GGUF files of the demo model for llama.cpp: the published Q4_1, and the reference's own weights in float32."""

from pathlib import Path
from typing import Any

import gguf
from safetensors.torch import load_file

HEADS = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}


def export_float32(reference: Path, like: Path, target: Path) -> Path:
    """Write the weights of a Llama in Hugging Face's layout as an F32 GGUF.

    Args:
        reference: directory with `model.safetensors`.
        like: a GGUF of the same model, of which metadata, tokenizer and chat template are taken.
        target: file to write.
    """
    reader = gguf.GGUFReader(like)
    writer = gguf.GGUFWriter(target, "llama")
    copy_metadata(reader, writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, value(reader, "llama.block_count"))
    for name, weights in load_file(reference / "model.safetensors").items():
        renamed = names.get_name(name, try_suffixes=(".weight",))
        assert renamed is not None, name
        array = weights.float().numpy()
        heads = HEADS.get(renamed.split(".")[-2])
        writer.add_tensor(renamed, interleaved(array, value(reader, heads)) if heads else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """All fields but those that the writer writes itself or that tell the quantization."""
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.quantization_version"):
            continue
        if field.name == "general.file_type":
            writer.add_file_type(gguf.LlamaFileType.ALL_F32)
            continue
        kind = field.types[0]
        items = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=items)


def value(reader: gguf.GGUFReader, name: str) -> Any:
    """One metadata value."""
    field = reader.get_field(name)
    assert field is not None, name
    return field.contents()


def interleaved(weights: Any, heads: int) -> Any:
    """Rows of each head [heads × 2 × half] as llama.cpp's rotary embedding takes them: pairs side by side."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
