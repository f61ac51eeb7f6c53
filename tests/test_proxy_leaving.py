"""A client leaves after each byte of an answer: one record each time, of what had come, and nothing stays behind."""

import asyncio
import os

import orjson
from test_proxy_forward import BODY
from test_proxy_surface import surface
from upstreams import SSE, Reply, ScriptedUpstream, completion, events, stream_chunk

from proxy.app import SESSION
from proxy.transcript import Transcript

STREAM = b": hello\n\n" + events(
    stream_chunk("Grü", token_ids=[5]), stream_chunk("ße", token_ids=[6, 7], finish="stop"), newline=b"\r\n"
)
JSON_ANSWER = orjson.dumps(completion("Grüße", token_ids=[5, 6, 7]))
AT_A_TIME = 16


class Cut(ScriptedUpstream):
    """Sends the first bytes of its answer, as many as the request says, and then waits for the other side to leave."""

    def __init__(self, answer, content_type):
        super().__init__(Reply([]))
        self.answer, self.content_type = answer, content_type
        self.sent = [asyncio.Event() for _ in range(len(answer) + 1)]
        self.gone = [asyncio.Event() for _ in range(len(answer) + 1)]

    async def handle(self, request):
        at = length_of(orjson.loads(await request.read()))
        try:
            return await super().handle(request)
        finally:
            self.gone[at].set()

    def choose(self, received):
        at = length_of(received.json())
        self.sent[at].set()
        headers = {} if self.content_type == SSE else {"Content-Length": str(len(self.answer))}
        return Reply([self.answer[:at]] if at else [], content_type=self.content_type, headers=headers, then="hold")


def length_of(body):
    return int(body["messages"][0]["content"])


def asked(at, **fields):
    return {**BODY, "messages": [{"role": "user", "content": str(at)}], **fields}


async def leave(proxy, upstream, at):
    """Ask, wait for all bytes that there will be before the answer's end, and leave."""
    streamed = upstream.content_type == SSE
    asking = asyncio.ensure_future(proxy.post(asked(at, stream=streamed)).__aenter__())
    if at == 0:  # nothing will come, no status either
        await upstream.sent[at].wait()
        asking.cancel()
    else:
        answer = await asking
        # of a JSON answer, which is of use only as a whole, the last bytes are kept back
        assert not streamed or await answer.content.readexactly(at) == upstream.answer[:at]
        answer.close()
    await upstream.gone[at].wait()


async def rows_after_leaving(tmp_path, upstream, places):
    async with surface(tmp_path, upstream) as (_, proxy):
        await leave(proxy, upstream, 0)  # what is opened once is open now
        tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        turn = asyncio.Semaphore(AT_A_TIME)

        async def one(at):
            async with turn:
                await leave(proxy, upstream, at)

        await asyncio.wait_for(asyncio.gather(*map(one, places)), 60)
        rows = await proxy.exchanges()
        assert not proxy.app[SESSION].connector._acquired
        while len(asyncio.all_tasks()) > tasks or len(os.listdir("/proc/self/fd")) > files:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # both sides' sockets close in the loop's own time
    found = {length_of(row.request): row for row in rows}
    assert len(rows) == len(found) == len(places) + 1
    return found


def folded(prefix):
    transcript = Transcript(event_stream=True, choices=1)
    transcript.feed(prefix)
    return transcript.finish()


async def test_a_stream_that_is_left_at_each_byte(tmp_path):
    found = await rows_after_leaving(tmp_path, Cut(STREAM, SSE), range(1, len(STREAM) + 1))
    whole = STREAM.index(b"\r\n\r\ndata: [DONE]") + 3
    assert (found[0].status, found.pop(0).response) == (499, {})
    for at, row in found.items():
        expected = folded(STREAM[:at])
        assert row.response == expected, at
        assert row.outcome == ("client_left" if at < whole else "complete"), at
        # a prefix is verified like a whole; without a token there is nothing to verify
        assert row.audit == bool(expected["choices"]), at
        assert row.unaudited_reason == (None if row.audit else "client_left")
    assert [found[at].response["choices"][0]["token_ids"] for at in (whole // 2 + 40, whole)] == [[5], [5, 6, 7]]


async def test_a_json_answer_that_is_left_at_each_byte(tmp_path):
    found = await rows_after_leaving(tmp_path, Cut(JSON_ANSWER, "application/json"), range(1, len(JSON_ANSWER)))
    assert {(row.outcome, row.audit, row.unaudited_reason) for row in found.values()} == {
        ("client_left", False, "client_left")
    }
    assert {row.status for at, row in found.items() if at} == {200}
