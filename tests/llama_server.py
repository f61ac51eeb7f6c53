"""Runs llama.cpp's own server out of the package `xllamacpp`: `python llama_server.py GGUF PORT`, in its own venv."""

import signal
import sys

import xllamacpp


def parameters(gguf: str, port: int) -> xllamacpp.CommonParams:
    """Four slots of 2048 tokens each on the loopback interface."""
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx, params.n_parallel = 8192, 4
    params.cpuparams.n_threads = 2
    return params


if __name__ == "__main__":
    server = xllamacpp.Server(parameters(sys.argv[1], int(sys.argv[2])))
    signal.pause()  # until a signal ends the process
