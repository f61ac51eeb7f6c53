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
chunks = list(call("stream", stream=True, stream_options={"include_usage": True}))
seen["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
seen["usage"] = chunks[-1].usage.total_tokens
made = call("tools", tools=TOOLS).choices[0].message.tool_calls[0].function
seen["tools"] = [made.name, made.arguments]
seen["tools_stream"] = "".join(
    made.function.arguments or "" for chunk in call("tools_stream", tools=TOOLS, stream=True)
    for made in chunk.choices[0].delta.tool_calls or ()
)
schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
seen["json_schema"] = json.loads(call("json_schema", response_format=schema).choices[0].message.content)
seen["n"] = [choice.message.content for choice in call("n", n=2).choices]
for name in ("error400", "error401", "error404", "breaks"):
    seen[name] = failing(name)
for name in ("error429_then_good", "error500_then_good"):
    seen[name] = failing(name, num_retries=2, max_retries=2)
text = litellm.text_completion(
    model="text-completion-openai/m", api_base=sys.argv[1], api_key="sk-the-clients-own-key", prompt="text"
)
seen["text"] = text.choices[0].text
stream = call("abort", stream=True)
next(iter(stream))
stream.completion_stream.close()
print(json.dumps(seen))
