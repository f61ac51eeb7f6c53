"""Runs llama.cpp's own server out of the package `xllamacpp`: `python llama_server.py GGUF PORT`, in its own venv."""

import signal
import sys

import xllamacpp


def parameters(gguf: str, port: int) -> xllamacpp.CommonParams:
    """Four slots of 2048 tokens each on the loopback interface, all arithmetic in float32.

    By default keys and values are kept in float16 and flash attention rounds on the CPU: log-probabilities are then off
    by up to 0.013, and the match rate without any filter falls from about 0.99 to 0.94.
    """
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx, params.n_parallel = 8192, 4
    # two would wait for each other at every step where the machine has other work
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return params


if __name__ == "__main__":
    server = xllamacpp.Server(parameters(sys.argv[1], int(sys.argv[2])))
    signal.pause()  # until a signal ends the process
