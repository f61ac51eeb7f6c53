"""What an audit costs beside the bare prefill it needs, on one GPU: ours, and token-difr 0.1.1 as published.

Every step runs in a process of its own, so that an engine's memory is gone before the next one starts:
    vllm          one engine: bare prefill of prompt + output, then our scores from the same engine
    transformers  our scores from transformers, packed, eager and compiled; scoring's memory beyond the trunk's
    token_difr    token_difr.verify_outputs, unmodified; the time of building its engine is left out
    kernel        the fused kernel and its torch twin on 2,048 rows of logits
    golden        match rates of recorded vLLM outputs on the real model, by both of our references; and in float32
Weights of `llama` and `wide` are dummies: speed does not depend on them. Tokens per second are of prompt and output.

    usage: python -m bench.verify_gpu [--models llama smollm2 wide] [--steps vllm …] [--gguf FILE] [--golden DIR]
                                      [--save FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from verifier import kernels_twin
from verifier.recordings import read_recordings
from verifier.reference_cuda import CudaReference
from verifier.reference_scoring import Piece, family, kernel_rows
from verifier.replay import Claim
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores
from verifier.sequences import TokenSequence
from verifier.verify import claims_of

ROOT = Path(__file__).parents[1]
SEQUENCES, PROMPT, OUTPUT = 32, 256, 512
ROUNDS = 4
PARAMS = SamplingParams(temperature=1.0, top_k=50, top_p=0.95)
SAMPLER = "vllm@0.11.0/v1"  # what token-difr replays
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES = {
    "llama": LLAMA,
    "wide": LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 262144},
}
KERNEL_CASES = {
    "v1_k50_p95": (PARAMS, SAMPLER), "v1_plain": (SamplingParams(), SAMPLER),
    "v2_26_plain": (SamplingParams(), "vllm@0.26.0/v2"), "v2_31_plain": (SamplingParams(), "vllm@0.31.0/v2"),
    "v2_26_p95": (SamplingParams(top_p=0.95), "vllm@0.26.0/v2"), "greedy": (SamplingParams(temperature=0), SAMPLER),
}  # fmt: skip
GOLDEN = (("honest_bf16", "vllm@0.26.0/v1"), ("v2_plain", "vllm@0.26.0/v2"), ("int4", "vllm@0.26.0/v1"))
V1_FILES = ("honest_bf16_seq", "plain_t1", "t07_p09", "fp8", "temp11", "v1_pen", "v1_bias")
MORE_GOLDEN = (
    *((file, GOLDEN[0][1]) for file in V1_FILES),
    ("greedy", "greedy"), *((file, GOLDEN[1][1]) for file in ("v2_n4", "v2_compiled", "v2_fp8")),
)  # fmt: skip


def make_model(name: str, folder: Path, gguf: Path) -> Path:
    """A directory that vLLM and transformers load: real weights for smollm2, else a shape and a tokenizer."""
    path = folder / name
    if (path / "config.json").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    if name == "smollm2":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        whole = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        whole.hf_quantizer = None  # else transformers takes the dequantized weights for quantized ones
        del whole.config.quantization_config
        whole.to(torch.bfloat16).save_pretrained(path)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(path)
        return path
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {f"t{i}": i for i in range(SHAPES[name]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="t0", eos_token="t1").save_pretrained(path)
    (path / "config.json").write_text(json.dumps(SHAPES[name]))
    return path


def made_claims(width: int, sequences: int = SEQUENCES) -> list[Claim]:
    """Claims of random tokens: a filtered race each."""
    rng, rules = random.Random(7), contract(SAMPLER)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(2, width) for _ in range(count)]

    return [Claim(TokenSequence(tokens(PROMPT), tokens(OUTPUT)), 42, PARAMS, rules) for _ in range(sequences)]


def seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median wall time, after two rounds to warm up."""
    times = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def speed(claims: list[Claim], run: Callable[[], object], rounds: int = ROUNDS) -> float:
    tokens = sum(len(c.sequence.prompt_token_ids) + len(c.sequence.output_token_ids) for c in claims)
    return tokens / seconds(run, rounds)


def engine_and_claims(path: Path, model: str) -> tuple[Any, list[Claim], Callable[[], object]]:
    """A vLLM reference, claims, and a bare prefill of their tokens by the same engine."""
    from vllm import SamplingParams as Sampled

    from verifier.reference_vllm import VLLMReference

    # Without the prefix cache, since every round runs the same tokens.
    options = {"enable_prefix_caching": False, **({} if model == "smollm2" else {"load_format": "dummy"})}
    reference = VLLMReference(path, max_model_len=2048, vllm_kwargs=options)
    if model != "smollm2":
        reference.engine.apply_model(spread_logits)
    claims = made_claims(reference.width)
    prompts = [{"prompt_token_ids": c.sequence.prompt_token_ids + c.sequence.output_token_ids[:-1]} for c in claims]
    bare_params = Sampled(max_tokens=1, temperature=0.0, detokenize=False)
    return reference, claims, lambda: reference.engine.generate(prompts, bare_params, use_tqdm=False)


def step_vllm(path: Path, model: str) -> dict[str, Any]:
    reference, claims, run_bare = engine_and_claims(path, model)
    unfiltered = [replace(c, params=SamplingParams(), contract=contract("vllm@0.26.0/v2")) for c in claims]
    runs: dict[str, list[float]] = {"bare": [], "ours": [], "unfiltered": []}
    # In turns, so that a GPU that warms up or slows down does so for all of them.
    for _ in range(3):
        runs["bare"].append(speed(claims, run_bare))
        runs["ours"].append(speed(claims, lambda: reference.scores(claims)))
        runs["unfiltered"].append(speed(claims, lambda: reference.scores(unfiltered)))
    return {
        "seedproof_vllm_tokens_per_second": statistics.median(runs["ours"]),
        "seedproof_vllm_unfiltered_tokens_per_second": statistics.median(runs["unfiltered"]),
        "bare_prefill_tokens_per_second": statistics.median(runs["bare"]), "vllm_runs": runs,
    }  # fmt: skip


def spread_logits(model: Any) -> None:
    """Give a dummy model logits of the spread that real ones have (σ = 3); vLLM's own are all but equal."""
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.normal_(0.0, 3.0 / model.lm_head.weight.shape[1] ** 0.5)


def step_transformers(path: Path, model: str) -> dict[str, Any]:
    loaded = None
    if model != "smollm2":
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("cuda"):
            config = AutoConfig.from_pretrained(path)
            loaded = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        spread_logits(loaded)
    found: dict[str, Any] = {}
    for compiled in (False, True):
        reference = CudaReference(path, model=loaded, compiled=compiled)
        claims = made_claims(reference.width)
        name = f"seedproof_transformers{'' if compiled else '_eager'}_tokens_per_second"
        found[name] = speed(claims, lambda: reference.scores(claims))  # noqa: B023
    hidden = torch.randn(OUTPUT * 8, reference._head.weight.shape[1], device="cuda", dtype=torch.bfloat16)
    step = reference._chunk_bytes // (2 * reference.width)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    score_hidden(reference, hidden[:step], claims)
    return found | {"extra_memory_bytes": torch.cuda.max_memory_allocated() - before}


@torch.inference_mode()
def score_hidden(reference: CudaReference, hidden: torch.Tensor, claims: list[Claim]) -> None:
    """Head and scoring of one chunk, as the reference does both."""
    from verifier.reference_cuda import pieces_between
    from verifier.reference_scoring import score_pieces

    logits = reference._head(hidden)
    score_pieces(logits, pieces_between(claims, range(len(claims)), 0, len(hidden)), (), {})
    torch.cuda.synchronize()


def step_profile(path: Path, model: str) -> dict[str, Any]:
    """Where a round of ours through vLLM spends its time: torch's profiler over bare prefill and over ours."""
    from torch.profiler import ProfilerActivity, profile

    reference, claims, run_bare = engine_and_claims(path, model)
    found: dict[str, Any] = {}
    for name, run in {"bare": run_bare, "ours": lambda: reference.scores(claims)}.items():
        seconds(run, 2)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            started = time.perf_counter()
            run()
            torch.cuda.synchronize()
            found[f"profiled_{name}_seconds"] = time.perf_counter() - started
        kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        found[f"profiled_{name}_gpu_seconds"] = sum(e.device_time for e in kernels) / 1e6
        for order in ("self_cuda_time_total", "self_cpu_time_total"):
            table = profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
            print(name, table, sep="\n", flush=True)
    return found


def step_token_difr(path: Path, model: str) -> dict[str, Any]:
    import token_difr.verify as peer

    claims = made_claims(SHAPES.get(model, {"vocab_size": 49152})["vocab_size"])
    built: list[float] = []
    engine = peer.LLM

    def timed_engine(**options: Any) -> Any:
        made = engine(**options)
        built.append(time.perf_counter())
        return made

    peer.LLM = timed_engine
    options = {} if model == "smollm2" else {"load_format": "dummy"}
    outputs = [peer.TokenSequence(c.sequence.prompt_token_ids, c.sequence.output_token_ids) for c in claims]
    peer.verify_outputs(
        outputs, str(path), temperature=1.0, top_k=50, top_p=0.95, seed=42, max_model_len=2048, vllm_kwargs=options
    )
    return {"token_difr_tokens_per_second": SEQUENCES * (PROMPT + OUTPUT) / (time.perf_counter() - built[0])}


def step_kernel(path: Path, model: str) -> dict[str, Any]:
    """Milliseconds for 2,048 rows, whose claims win as honest ones do; the twin's are scaled up from fewer rows."""
    from triton.testing import do_bench

    from verifier.kernels import score_rows

    width = SHAPES.get(model, {"vocab_size": 49152})["vocab_size"]
    count, small = 2048, 128 if width > 200000 else 256
    found = {}
    for spread, logits in {"flat": flat_logits(count, width), "peaked": peaked_logits(count, width)}.items():
        for name, (params, sampler) in KERNEL_CASES.items():
            claim = Claim(TokenSequence([1], [0] * count), 42, params, contract(sampler))
            some = kernel_rows([Piece(0, claim, 0, count)], *family(claim), width=width)
            ids = score_rows(logits, some)[:, 0].long().tolist()
            claim = replace(claim, sequence=TokenSequence([1], ids))
            rows = kernel_rows([Piece(0, claim, 0, count)], *family(claim), width=width)
            found[f"kernel_{spread}_{name}_ms"] = do_bench(lambda: score_rows(logits, rows), return_mode="median")  # noqa: B023
            if spread == "flat":
                part = kernel_rows([Piece(0, claim, 0, small)], *family(claim), width=width)
                twin = seconds(lambda: kernels_twin.score_rows(logits[:small], part), 3)  # noqa: B023
                found[f"twin_{name}_ms"] = 1e3 * twin * count / small
    return found


def flat_logits(count: int, width: int) -> torch.Tensor:
    """Normal ones of σ = 3: a nucleus of ten thousand tokens, as at a high temperature."""
    return (3 * torch.randn(count, width, device="cuda")).bfloat16()


def peaked_logits(count: int, width: int) -> torch.Tensor:
    """Some dozens of likely tokens high above the rest, as a language model has them."""
    logits = 2 * torch.randn(count, width, device="cuda")
    likely = torch.randint(0, width, (count, 64), device="cuda")
    return logits.scatter_add_(1, likely, 24 - 2 * torch.empty(count, 64, device="cuda").exponential_()).bfloat16()


def step_golden(path: Path, model: str) -> dict[str, Any]:
    """Match rates of three recorded files by both references in bfloat16, as the provider ran."""
    from verifier.reference_vllm import VLLMReference

    return {
        **golden_rates(CudaReference(path), GOLDEN, "transformers"),
        **golden_rates(VLLMReference(path, max_model_len=2048), GOLDEN, "vllm"),
    }


def step_golden_float32(path: Path, model: str) -> dict[str, Any]:
    """Match rates of all recorded files by transformers in float32, as on a CPU."""
    return golden_rates(CudaReference(path, dtype=torch.float32), [*GOLDEN, *MORE_GOLDEN], "float32")


def golden_rates(reference: Any, files: Sequence[tuple[str, str]], name: str) -> dict[str, Any]:
    found = {}
    for file, sampler in files:
        # temp11 was drawn at another temperature than its provider claims.
        overrides = {"temperature": 1.0} if file == "temp11" else {}
        recordings = read_recordings(Path(os.environ["GOLDEN"]) / f"{file}.jsonl", overrides=overrides)
        scores = TokenScores.join(reference.scores(claims_of(recordings, contract(sampler), file)))
        found[f"{name}_{file}"] = {
            "tokens": len(scores), "exact_match": float(scores.exact_match.mean()),
            "outside": int((~scores.inside_support).sum()), "edge": int(scores.edge.sum()),
        }  # fmt: skip
    return found


STEPS = {
    "kernel": step_kernel, "vllm": step_vllm, "transformers": step_transformers, "token_difr": step_token_difr,
    "golden": step_golden, "golden_float32": step_golden_float32, "profile": step_profile,
}  # fmt: skip
USUAL = [step for step in STEPS if step != "profile"]


def run_step(model: str, step: str, args: argparse.Namespace) -> dict[str, Any]:
    """One step in its own process; what it printed last is its result, and a failure is one too."""
    command = [sys.executable, "-m", "bench.verify_gpu", "--models", model, "--one", step, "--work", args.work,
               "--gguf", args.gguf]  # fmt: skip
    environment = os.environ | {"GOLDEN": args.golden}
    if step in {"vllm", "profile"}:
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for spread_logits
    if step == "profile":
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if step == "token_difr":
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if args.logs:
        Path(args.logs, f"{model}-{step}.log").write_text(done.stdout[-200_000:] + done.stderr[-200_000:])
    if done.returncode or not last[0].startswith("{"):
        return {f"{step}_failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(last[0]) | {f"{step}_step_seconds": time.perf_counter() - started}


def hardware(commit: str) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    def known(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    if not commit:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        commit = said.stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(), "python": platform.python_version(), "torch": torch.__version__,
        **{name: known(name) for name in ("triton", "vllm", "transformers", "token-difr")},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit or None,
    }  # fmt: skip


def ratios(case: dict[str, Any]) -> dict[str, float]:
    """What the speeds of a case, as far as they are known, are to each other."""
    pairs = {
        "ratio_to_bare": ("seedproof_vllm", "bare_prefill"),
        "transformers_ratio_to_bare": ("seedproof_transformers", "bare_prefill"),
        "ratio_to_token_difr": ("seedproof_vllm", "token_difr"),
    }
    speeds = {name: [case.get(f"{side}_tokens_per_second") for side in sides] for name, sides in pairs.items()}
    return {name: ours / peers for name, (ours, peers) in speeds.items() if ours and peers}


def saved_cases(path: Path, here: dict[str, Any]) -> dict[str, Any]:
    """Cases of a report that was made with the same commit, GPU and versions; raises ValueError at another's."""
    if not path.exists():
        return {}
    report = json.loads(path.read_text())
    if any(report["hardware"][name] != here[name] for name in here if name != "date"):
        raise ValueError(f"{path} was not made with this commit, GPU and versions: give another --save")
    return report["cases"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["llama", "smollm2", "wide"])
    parser.add_argument("--steps", nargs="+", default=USUAL, choices=list(STEPS))
    parser.add_argument("--gguf", default="smollm2.gguf", help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--golden", default="../shared/golden")
    parser.add_argument("--work", default=os.path.join(tempfile.gettempdir(), "verify_gpu"))
    parser.add_argument("--save", default=str(ROOT / "bench/results/verify_gpu.json"))
    parser.add_argument("--logs", default="")
    parser.add_argument("--commit", default="", help="of this tree, where git cannot tell")
    parser.add_argument("--add", action="store_true", help="to the saved cases of the same commit, GPU and versions")
    parser.add_argument("--one", choices=list(STEPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        path = make_model(args.models[0], Path(args.work), Path(args.gguf))
        print(json.dumps(STEPS[args.one](path, args.models[0])), flush=True)
        return
    report: dict[str, Any] = {
        "hardware": hardware(args.commit), "sequences": SEQUENCES, "prompt": PROMPT, "output": OUTPUT, "cases": {}
    }  # fmt: skip
    if args.add:
        report["cases"] = saved_cases(Path(args.save), report["hardware"])
    for model in args.models:
        case: dict[str, Any] = report["cases"].setdefault(model, {})
        for step in args.steps:
            if step.startswith("golden") and model != "smollm2":
                continue
            case |= run_step(model, step, args)
            case |= ratios(case)
            Path(args.save).parent.mkdir(parents=True, exist_ok=True)
            Path(args.save).write_text(json.dumps(report, indent=1) + "\n")
        print(model, json.dumps(case, indent=1), flush=True)


if __name__ == "__main__":
    main()
