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


seen = {"chat": chat.invoke("chat").content, "stream": "".join(part.content for part in chat.stream("stream"))}
[call] = chat.bind_tools([tool]).invoke("tools").tool_calls
seen["tools"] = [call["name"], json.dumps(call["args"], separators=(",", ":"), ensure_ascii=False)]
seen["n"] = [found.text for found in ChatOpenAI(
    model="m", base_url=sys.argv[1], api_key="k", n=2).generate([[HumanMessage("n")]]).generations[0]]
for name in ("error400", "error401", "error404", "error429_then_good", "error500_then_good", "breaks"):
    seen[name] = failing(name)
stream = chat.stream("abort")
next(stream)
stream.close()
print(json.dumps(seen))
