"""Hugging Face's Text Generation Inference: vLLM V1's race with transformers' filters.

Source: server/text_generation_server/utils/tokens.py (in maintenance mode). Each request has a generator of its own and
fills q in the type of its logits: `tgi:dtype=bfloat16` where a server keeps them in the model's type, float32 else.
Order: temperature → top_k (ties stay) → top_p → typical (not modelled). Position k = output token k, until another
request joins the batch: TGI then rebuilds all generators from their seeds, and the stream starts again at 0.
Speculation draws for rejected positions too. Without a seed the router makes one and returns it.
"""

from __future__ import annotations

from verifier.errors import UnknownContract
from verifier.samplers.huggingface import GenerateOnCuda
from verifier.samplers.names import ContractName, render
from verifier.samplers.torch_cuda import grid_threads

DTYPES = ("float32", "bfloat16", "float16")


def contract(name: ContractName) -> GenerateOnCuda:
    """`tgi[@VERSION][:gpu=CLASS,dtype=float32|bfloat16|float16]`."""
    options = name.take_options("gpu", "dtype")
    dtype = options.get("dtype", "float32")
    if dtype not in DTYPES:
        raise UnknownContract(f"dtype={dtype} is not known: use one of {', '.join(DTYPES)}")
    return GenerateOnCuda(id=render(name), grid_threads=grid_threads(options.get("gpu", "H100")), dtype=dtype)
