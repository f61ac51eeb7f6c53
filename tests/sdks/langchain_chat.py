"""LangChain's ChatOpenAI: usage langchain_chat.py BASE_URL; prints what each scenario gave."""

import json
import sys

import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

chat = ChatOpenAI(model="m", base_url=sys.argv[1], api_key="sk-the-clients-own-key", max_retries=2)
parameters = {"type": "object", "properties": {}}
tool = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": parameters}}


def failing(name):
    try:
        return ["ok", chat.invoke(name).content]
    except openai.APIStatusError as error:
        return [error.status_code, error.code, error.request_id]


seen = {"chat": chat.invoke("chat").content}
parts = list(chat.stream("stream", stream_usage=True))
seen["stream"] = "".join(part.content for part in parts)
seen["usage"] = sum(part.usage_metadata["total_tokens"] for part in parts if part.usage_metadata)
[call] = chat.bind_tools([tool]).invoke("tools").tool_calls
seen["tools"] = [call["name"], json.dumps(call["args"], separators=(",", ":"), ensure_ascii=False)]
seen["tools_stream"] = "".join(
    made["args"] or "" for part in chat.bind_tools([tool]).stream("tools_stream") for made in part.tool_call_chunks
)
seen["json_schema"] = chat.with_structured_output(
    {"title": "s", "type": "object", "properties": {"a": {"type": "integer"}}}, method="json_schema"
).invoke("json_schema")
seen["n"] = [found.text for found in ChatOpenAI(
    model="m", base_url=sys.argv[1], api_key="k", n=2).generate([[HumanMessage("n")]]).generations[0]]
for name in ("error400", "error401", "error404", "error429_then_good", "error500_then_good", "breaks"):
    seen[name] = failing(name)
stream = chat.stream("abort")
next(stream)
stream.close()
print(json.dumps(seen))
