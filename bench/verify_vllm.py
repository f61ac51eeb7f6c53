"""Match rates of recorded outputs by the vLLM reference, its engine built in every way that a worker's options allow.

    python -m bench.verify_vllm [--ways NAME …] [--model DIR] [--golden DIR] [--save]

Each way is an engine in a process of its own on one GPU, or on two for the parallel ones. A reference in the
provider's own precision must find honest answers honest; one in fp8 is another model, and matches less. Ways named
`no_room` and `too_long` must end in one line that says what to do. Exits with 1 where one does not hold.
`tensor_parallel` runs the model with heads added that change nothing, since two GPUs cannot share its nine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.run import ROOT, save_case

FILES = {"honest_bf16": "vllm@0.26.0/v1", "v2_plain": "vllm@0.26.0/v2", "int4": "vllm@0.26.0/v1"}
EXACT = {"honest_bf16": (0.98, 1.0), "v2_plain": (0.985, 1.0), "int4": (0.0, 0.75)}
# Two GPUs add a sum in another order than the provider's one had; compiled kernels, most likely, than its eager ones.
REORDERED = {"honest_bf16": (0.97, 1.0), "v2_plain": (0.97, 1.0), "int4": (0.0, 0.75)}
ANOTHER = {"honest_bf16": (0.80, 0.96), "v2_plain": (0.75, 0.96), "int4": (0.0, 0.75)}
FEW = {"honest_bf16": (0.96, 1.0), "v2_plain": (0.96, 1.0), "int4": (0.0, 0.8)}


@dataclass(frozen=True)
class Way:
    """How an engine is built, and the bounds of each file's match rate; none where it must refuse."""

    options: Mapping[str, Any] = field(default_factory=dict)
    vllm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=lambda: EXACT)
    backend: str = "vllm"
    runner: str = ""
    limit: int | None = None
    gpus: int = 1
    added_heads: bool = False


WAYS = {
    "default": Way(),
    "v1_runner": Way(runner="0"),
    "v2_runner": Way(runner="1"),
    "compiled": Way(vllm_kwargs={"enforce_eager": False}, bounds=REORDERED),
    "fp8_weights": Way(vllm_kwargs={"quantization": "fp8"}, bounds=ANOTHER),
    "fp8_cache": Way(vllm_kwargs={"kv_cache_dtype": "fp8"}, bounds=ANOTHER),
    "logprobs": Way(backend="vllm-logprobs", limit=4, bounds=FEW),
    "logprobs_v1_runner": Way(backend="vllm-logprobs", runner="0", limit=4, bounds=FEW),
    "added_heads": Way(added_heads=True),
    "tensor_parallel": Way(vllm_kwargs={"tensor_parallel_size": 2}, bounds=REORDERED, gpus=2, added_heads=True),
    "pipeline_parallel": Way(vllm_kwargs={"pipeline_parallel_size": 2}, gpus=2),
    "no_room": Way(options={"gpu_memory_utilization": 0.001}, bounds={}),
    "too_long": Way(options={"max_model_len": 64}, bounds={}),
}


def answers(name: str, way: Way, model: str, golden: Path) -> dict[str, Any]:
    """Rates of all files, seconds until the engine stood and until all was scored; or the error that it ended in."""
    # Not above: vLLM's worker imports this file too, and CUDA must not have been woken before it is forked.
    import torch
    import vllm

    from verifier.errors import VerifierError
    from verifier.recordings import read_recordings
    from verifier.references import open_reference
    from verifier.replay import replay
    from verifier.samplers import contract
    from verifier.scoring import TokenScores
    from verifier.verify import claims_of

    found: dict[str, Any] = {"case": name, "vllm": vllm.__version__, "gpus": way.gpus}
    started = time.perf_counter()
    try:
        options = {"max_model_len": 2048, **way.options, "vllm_kwargs": dict(way.vllm_kwargs)}
        reference = open_reference(model, backend=way.backend, dtype=torch.bfloat16, **options)
        found["start_seconds"] = round(time.perf_counter() - started, 1)
        started = time.perf_counter()
        for file, sampler in FILES.items():
            claims = claims_of(read_recordings(golden / f"{file}.jsonl", limit=way.limit), contract(sampler), file)
            for number, claim in enumerate(claims):
                reference.check(number, claim.sequence)
            scores = TokenScores.join(replay(reference, claims))
            found[file] = {"tokens": len(scores), "exact_match": round(float(scores.exact_match.mean()), 5)}
        found["score_seconds"] = round(time.perf_counter() - started, 1)
        found["gpu"] = torch.cuda.get_device_name()
    except VerifierError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def with_more_heads(model: str, target: Path) -> str:
    """The same model with one more key head, whose query heads' outputs count for nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads(Path(model, "config.json").read_text())
    keys, queries, width = config["num_key_value_heads"], config["num_attention_heads"], config["head_dim"]
    added = {"q": queries // keys, "k": 1, "v": 1}
    weights = load_file(Path(model, "model.safetensors"))
    for name, weight in weights.items():
        kind = name.removesuffix("_proj.weight")[-1]
        if "self_attn" in name and kind in added:
            weights[name] = torch.cat([weight, weight[: added[kind] * width]])
        elif "self_attn" in name:
            weights[name] = torch.cat([weight, torch.zeros_like(weight[:, : added["q"] * width])], dim=1)
    shutil.copytree(model, target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    heads = {"num_key_value_heads": keys + 1, "num_attention_heads": queries + added["q"]}
    (target / "config.json").write_text(json.dumps({**config, **heads}))
    return str(target)


def run(name: str, way: Way, args: argparse.Namespace) -> dict[str, Any]:
    """One way in its own process, and what of it does not hold."""
    if way.added_heads:
        with tempfile.TemporaryDirectory() as scratch:
            path = with_more_heads(args.model, Path(scratch, "model"))
            return run(name, replace(way, added_heads=False), argparse.Namespace(**vars(args) | {"model": path}))
    command = [sys.executable, "-m", "bench.verify_vllm", "--one", name, "--model", args.model, "--golden", args.golden]
    environment = os.environ | ({"VLLM_USE_V2_MODEL_RUNNER": way.runner} if way.runner else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if args.logs:
        Path(args.logs, f"{name}.log").write_text(done.stdout + done.stderr)
    last = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), "{}")
    found = json.loads(last) or {"case": name, "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return {**found, "broken": broken(way, found)}


def broken(way: Way, found: Mapping[str, Any]) -> list[str]:
    """Which of a way's bounds do not hold."""
    if not way.bounds:
        return [] if "error" in found else ["it did not refuse"]
    rates = {file: found.get(file, {}).get("exact_match", -1.0) for file in way.bounds}
    return [file for file, (low, high) in way.bounds.items() if not low <= rates[file] <= high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=[n for n, w in WAYS.items() if w.gpus == 1])
    parser.add_argument("--model", default="", help="directory of SmolLM2-135M-Instruct; by default the demo model's")
    parser.add_argument("--golden", default="../shared/golden")
    parser.add_argument("--logs", default="", help="a directory for what the engines say")
    parser.add_argument("--save", action="store_true", help="put the ways into bench/results/verify_vllm.json")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(answers(args.one, WAYS[args.one], args.model, Path(args.golden))), flush=True)
        return
    if not args.model:
        from verifier.demo_model import ensure_demo_model

        args.model = str(ensure_demo_model())
    lines = []
    for name in args.ways:
        lines.append(run(name, WAYS[name], args))
        print(json.dumps(lines[-1]), flush=True)
        if args.save:
            save_case("verify_vllm", lines[-1])
    sys.exit(any(line["broken"] for line in lines))


if __name__ == "__main__":
    main()
