"""The official clients, unmodified but for their base_url, through the proxy (make test-sdks)."""

import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from test_proxy_forward import proxied
from upstreams import SSE, Reply, ScriptedUpstream, completion, events, scripted, stream_chunk

pytestmark = pytest.mark.sdk

TESTS = Path(__file__).parent
CACHE = Path(os.environ.get("SEEDPROOF_SDKS") or Path.home() / ".cache/seedproof/sdks")
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}}
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LANGSMITH_TRACING": "false"}
GOOD = Reply([orjson.dumps(completion("good at last"))])


def json_reply(value, status=200, **headers):
    return Reply([orjson.dumps(value)], status=status, headers={"x-request-id": "req_1", **headers})


def refusal(status, **headers):
    error = {"message": "no", "type": "x", "param": None, "code": f"code{status}"}
    return json_reply({"error": error}, status, **headers)


def tool_stream():
    arguments = CALL["function"]["arguments"]
    head = {**CALL, "index": 0, "function": {"name": "weather", "arguments": ""}}
    parts = [{"tool_calls": [head]}] + [
        {"tool_calls": [{"index": 0, "function": {"arguments": arguments[place:place + 3]}}]}
        for place in range(0, len(arguments), 3)
    ]
    chunks = [stream_chunk() | {"choices": [{"index": 0, "delta": part, "finish_reason": None}]} for part in parts]
    return Reply([events(chunk, done=False) for chunk in chunks] + [events(stream_chunk(finish="tool_calls"))],
                 content_type=SSE)


def plain_stream():
    usage = stream_chunk() | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    whole = b": comment\n\n" + events(stream_chunk("Hel"), stream_chunk("lo 漢🙂"), stream_chunk(finish="stop"), usage)
    return Reply([whole[place:place + 11] for place in range(0, len(whole), 11)], content_type=SSE)


TOOL_BODY = completion("") | {"choices": [{
    "index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [CALL]}, "finish_reason": "tool_calls",
}]}
TEXT_BODY = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [
    {"index": 0, "text": " goes on", "finish_reason": "stop", "logprobs": None}]}
SCENARIOS = {
    "chat": [json_reply(completion("Hello"))], "stream": [plain_stream()], "tools": [json_reply(TOOL_BODY)],
    "tools_stream": [tool_stream()], "n": [json_reply(completion("one", "two"))],
    "json_schema": [json_reply(completion('{"a": 1}'))], "error400": [refusal(400)], "error401": [refusal(401)],
    "error404": [refusal(404)], "error429_then_good": [refusal(429, **{"retry-after-ms": "10"}), GOOD],
    "error500_then_good": [refusal(500, **{"retry-after-ms": "10"}), GOOD], "breaks": [Reply([], then="abort")],
    "abort": [Reply([events(stream_chunk("a"), done=False)], content_type=SSE, then="hold")],
    "text": [json_reply(TEXT_BODY)],
}
EXPECTED = {
    "chat": "Hello", "stream": "Hello 漢🙂", "usage": 5, "tools": ["weather", '{"city":"Zürich"}'],
    "tools_stream": '{"city":"Zürich"}', "n": ["one", "two"], "json_schema": {"a": 1},
    "error400": [400, "code400", "req_1"], "error401": [401, "code401", "req_1"], "error404": [404, "code404", "req_1"],
    "error429_then_good": ["ok", "good at last"], "error500_then_good": ["ok", "good at last"], "text": " goes on",
}


class Scenarios(ScriptedUpstream):
    """Answers by the name of the scenario, which is the last message; counts the attempts at each."""

    def __init__(self):
        super().__init__(GOOD)
        self.attempts = dict.fromkeys(SCENARIOS, 0)

    def choose(self, received):
        body = received.json()
        name = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        replies = SCENARIOS[name]
        self.attempts[name] += 1
        return replies[min(self.attempts[name], len(replies)) - 1]


@asynccontextmanager
async def scenarios(tmp_path):
    async with scripted(Scenarios()) as upstream, proxied(tmp_path, upstream.url) as proxy:
        yield upstream, proxy


def python(script, *arguments, own=False):
    """A script and the interpreter that has its SDK."""
    interpreter = Path(sys.executable) if own else CACHE / "python/bin/python"
    if not interpreter.exists():
        pytest.skip(f"{interpreter} is not there: make test-sdks")
    return [str(interpreter), str(TESTS / "sdks" / script), *arguments], {}


def node():
    program = shutil.which("node")
    if program is None or not (CACHE / "node/node_modules").exists():
        pytest.skip("Node or its SDK is not there: make test-sdks")
    return [program, str(TESTS / "node/matrix.mjs")], {"SDK_MODULES": str(CACHE / "node")}


SDKS = {
    "openai Python, sync": lambda: python("openai_python.py", "sync", own=True),
    "openai Python, async": lambda: python("openai_python.py", "async", own=True),
    "openai Node": node,
    "LangChain": lambda: python("langchain_chat.py"),
    "LiteLLM": lambda: python("litellm_client.py"),
}


NOT_OFFERED = {"LangChain": {"text"}}
"""What this client has no call for."""


@pytest.mark.parametrize("name", SDKS)
async def test_sdk(tmp_path, name):
    command, environment = SDKS[name]()
    async with scenarios(tmp_path) as (upstream, proxy):
        done = await asyncio.to_thread(
            subprocess.run, [*command, proxy.address + "/v1"], env={**os.environ, **QUIET, **environment},
            capture_output=True,
            text=True, check=False, timeout=300,
        )
        assert done.returncode == 0, done.stderr
        seen = orjson.loads(done.stdout.splitlines()[-1])
        broken = seen.pop("breaks")
        assert broken[0] == 502
        # our own 502 says x-should-retry: false, since the provider may have billed the request
        assert upstream.attempts["breaks"] == 1
        assert upstream.attempts["error429_then_good"] == upstream.attempts["error500_then_good"] == 2
        if name == "LiteLLM":  # its errors keep the status only
            seen |= {key: EXPECTED[key] for key, value in seen.items()
                     if key.startswith("error4") and value == EXPECTED[key][:1]}
        assert seen == {key: EXPECTED[key] for key in seen}
        assert EXPECTED.keys() - seen.keys() <= NOT_OFFERED.get(name, set())
        await asyncio.wait_for(upstream.left.wait(), 20)
        rows = await proxy.exchanges()
        assert len(rows) == sum(upstream.attempts.values())
        [left] = [row for row in rows if row.outcome == "client_left"]
        assert left.request["messages"][-1]["content"] == "abort"
