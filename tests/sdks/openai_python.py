"""The openai package, sync or async: usage openai_python.py sync|async BASE_URL; prints what each scenario gave."""

import asyncio
import inspect
import json
import sys

import openai

SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def messages(name):
    return [{"role": "user", "content": name}]


async def main(kind, base_url):
    make = openai.OpenAI if kind == "sync" else openai.AsyncOpenAI
    client = make(base_url=base_url, api_key="sk-the-clients-own-key", max_retries=2)

    async def call(name, **options):
        made = client.chat.completions.create(model="m", messages=messages(name), **options)
        return await made if inspect.isawaitable(made) else made

    async def items(stream):
        if kind == "sync":
            return list(stream)
        return [item async for item in stream]

    async def failing(name):
        try:
            return ["ok", (await call(name)).choices[0].message.content]
        except openai.APIStatusError as error:
            return [error.status_code, error.code, error.request_id]

    seen = {"chat": (await call("chat", extra_body={"top_k": 3})).choices[0].message.content}
    chunks = await items(await call("stream", stream=True, stream_options={"include_usage": True}))
    seen["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    seen["usage"] = chunks[-1].usage.total_tokens
    call_made = (await call("tools", tools=TOOLS, tool_choice="auto")).choices[0].message.tool_calls[0].function
    seen["tools"] = [call_made.name, call_made.arguments]
    parts = await items(await call("tools_stream", tools=TOOLS, stream=True))
    seen["tools_stream"] = "".join(
        made.function.arguments for part in parts for choice in part.choices for made in choice.delta.tool_calls or ()
    )
    seen["n"] = [choice.message.content for choice in (await call("n", n=2)).choices]
    seen["json_schema"] = json.loads((await call("json_schema", response_format=SCHEMA)).choices[0].message.content)
    for name in ("error400", "error401", "error404", "error429_then_good", "error500_then_good", "breaks"):
        seen[name] = await failing(name)
    stream = await call("abort", stream=True)
    if kind == "sync":
        next(iter(stream))
        stream.close()
    else:
        async for _ in stream:
            break
        await stream.close()
    made = client.completions.create(model="m", prompt="text")
    seen["text"] = (await made if inspect.isawaitable(made) else made).choices[0].text
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1], sys.argv[2]))
