"""Writes the expectations beside it: python tests/data/prompts/record.py FOLDER_OF_TEMPLATES

Each file holds what transformers' own `apply_chat_template` makes of a few conversations, given as templates take them
(text contents, tool arguments as objects), at the clock of the recording. The templates themselves are not kept here.
"""

import hashlib
import json
import sys
from datetime import datetime
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

FAMILIES = {
    "llama-3.1": ("meta-llama-Llama-3.1-8B-Instruct", "<|begin_of_text|>", "<|eot_id|>"),
    "llama-3.2": ("meta-llama-Llama-3.2-3B-Instruct", "<|begin_of_text|>", "<|eot_id|>"),
    "qwen-2.5": ("Qwen-Qwen2.5-7B-Instruct", None, "<|im_end|>"),
    "qwen-3": ("Qwen-Qwen3-0.6B", None, "<|im_end|>"),
    "mistral-nemo": ("mistralai-Mistral-Nemo-Instruct-2407", "<s>", "</s>"),
    "gemma-2": ("google-gemma-2-2b-it", "<bos>", "<eos>"),
    "deepseek-r1": ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "smollm-3": ("HuggingFaceTB-SmolLM3-3B", None, "<|im_end|>"),
    "gpt-oss": ("openai-gpt-oss-120b", "<|startoftext|>", "<|return|>"),
}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich"}},
}
ASK = {"role": "user", "content": "Is it raining in Zürich?"}

CASES = {
    "one turn": {"messages": [ASK]},
    "system and turns": {
        "messages": [
            {"role": "system", "content": "Be brief."}, ASK, {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "  And <|im_end|> tomorrow?\n"},
        ]
    },
    "tools": {"messages": [ASK], "tools": [TOOL]},
    "tool result": {
        "messages": [
            ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": '{"rain": true}'},
        ],
        "tools": [TOOL],
    },
    "continued": {
        "messages": [ASK, {"role": "assistant", "content": "Yes, it"}],
        "continue_final_message": True, "add_generation_prompt": False,
    },
    "no generation prompt": {"messages": [ASK], "add_generation_prompt": False},
    "not thinking": {"messages": [ASK], "chat_template_kwargs": {"enable_thinking": False}},
}  # fmt: skip


def rendered(tokenizer, case):
    request = dict(case)
    kwargs = request.pop("chat_template_kwargs", {})
    request.setdefault("add_generation_prompt", True)
    try:
        return tokenizer.apply_chat_template(request.pop("messages"), tokenize=False, **request, **kwargs)
    except Exception:  # e.g. no system role in Gemma 2
        return None


def main(folder):
    for family, (name, bos, eos) in FAMILIES.items():
        template = (Path(folder) / f"{name}.jinja").read_text()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token=eos, chat_template=template
        )
        made = {
            "origin": f"transformers {transformers.__version__}, PreTrainedTokenizerFast.apply_chat_template",
            "template": f"{name}.jinja",
            "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "bos_token": bos,
            "eos_token": eos,
            "recorded_at": datetime.now().replace(microsecond=0).isoformat(),
            "cases": [{"name": n, "request": case, "rendered": rendered(tokenizer, case)} for n, case in CASES.items()],
        }
        path = Path(__file__).parent / f"{family}.json"
        path.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
