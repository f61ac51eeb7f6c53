"""LiteLLM as a client: usage litellm_client.py BASE_URL; prints what each scenario gave."""

import json
import sys

import litellm

litellm.suppress_debug_info = True
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def call(name, **options):
    return litellm.completion(
        model="openai/m", api_base=sys.argv[1], api_key="sk-the-clients-own-key",
        messages=[{"role": "user", "content": name}], **{"num_retries": 0, "max_retries": 0, **options},
    )


def failing(name, **options):
    try:
        return ["ok", call(name, **options).choices[0].message.content]
    except Exception as error:
        return [error.status_code]


seen = {"chat": call("chat").choices[0].message.content}
seen["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in call("stream", stream=True))
made = call("tools", tools=TOOLS).choices[0].message.tool_calls[0].function
seen["tools"] = [made.name, made.arguments]
seen["n"] = [choice.message.content for choice in call("n", n=2).choices]
for name in ("error400", "error401", "error404", "breaks"):
    seen[name] = failing(name)
for name in ("error429_then_good", "error500_then_good"):
    seen[name] = failing(name, num_retries=2, max_retries=2)
stream = call("abort", stream=True)
next(iter(stream))
stream.completion_stream.close()
print(json.dumps(seen))
