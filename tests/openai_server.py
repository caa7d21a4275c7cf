"""A server of OpenAI's API without an LLM, which does what a request tells it to.

It answers with ``text``, a word for a token. The last message, or the prompt, may hold

- ``STATUS-429``: fail with that status, or begin to stream and then fail with it (``LATE-429``);
- ``DROP``: drop the connection, in a stream after the first word;
- ``HANG``: never answer, in a stream after the first word;
- ``CALL-name``: call that tool, if it is among the tools of the request, in place of an answer.

Log probabilities, where they are asked for, are -0.5 for each word and -1.5 for each other one.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import ssl
import threading
from typing import Any

from aiohttp import web

MODEL = "org/the-llm"


class OpenAIServer:
    """The server, in a thread of its own.

    Attributes:
        key: the key that it asks for; empty: none.
        text: its answer.
        error: body of its failures, in place of OpenAI's form.
        requests: head and body of each completion asked for.
        closing: number of connections that it closes as the next requests arrive.
        peers: addresses from which completions were asked for.
        streams: whether it streams answers; else they are whole, whatever is asked for.
        left: gets the last words of each request whose client went away.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, key: str = "", port: int = 0) -> None:
        self.key = key
        self.text = "an answer of five words"
        self.error: bytes | None = None
        self.closing = 0
        self.streams = True
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.peers: set[Any] = set()
        self.left: queue.Queue[str] = queue.Queue()
        self._tls = tls
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://localhost:{self._port}/v1"

    def start(self) -> None:
        """Listen, again on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)

    def stop(self) -> None:
        """Close all connections; :meth:`start` may follow."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
            self._runner = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "localhost", self._port, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    def _refused(self, request: web.Request) -> web.Response | None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self._failed(401, f"wrong key {request.headers.get('Authorization')}")
        return None

    def _failed(self, status: int, message: str) -> web.Response:
        body = self.error or json.dumps({"error": {"message": message, "code": None}}).encode()
        headers = {"Location": "https://elsewhere"} if 300 <= status < 400 else {}
        return web.Response(
            status=status, body=body, content_type="application/json", headers=headers
        )

    async def _models(self, request: web.Request) -> web.StreamResponse:
        listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        return self._refused(request) or web.json_response(listed)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        if self.closing:
            self.closing -= 1
            request.transport.close()
        if (refused := self._refused(request)) is not None:
            return refused
        body = await request.json()
        self.requests.append((dict(request.headers), body))
        if body["model"] != MODEL:
            return self._failed(404, f"The model `{body['model']}` does not exist.")
        chat = "messages" in body
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        if found := re.search(r"STATUS-(\d+)", asked):
            return self._failed(int(found[1]), "told to fail")
        try:
            return await self._answer(request, body, chat, asked)
        except asyncio.CancelledError:
            self.left.put(asked.split()[-1])
            raise

    async def _answer(
        self, request: web.Request, body: dict[str, Any], chat: bool, asked: str
    ) -> web.StreamResponse:
        words = re.findall(r"\S+\s*", self.text)
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        reason = "stop" if len(words) <= limit else "length"
        words = words[:limit]
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": len(words)}
        calls = _calls(body, asked)
        if not (body.get("stream") and self.streams):
            await self._misbehave(request, asked)
            said = {"role": "assistant", "content": "".join(words)}
            if calls:
                reason, said = "tool_calls", {**said, "content": None, "tool_calls": calls}
            choice = {"message": said} if chat else {"text": "".join(words)}
            choice["logprobs"] = _logprobs(body, chat, words)
            choices = [{"index": 0, "finish_reason": reason, **choice}]
            return web.json_response({"choices": choices, "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(event: Any) -> None:
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {data}\n\n".encode())

        def event(text: str, reason: str | None = None) -> dict[str, Any]:
            said = {"delta": {"content": text} if text else {}} if chat else {"text": text}
            tokens = _logprobs(body, chat, [text] if text else [])
            return {"choices": [{"index": 0, "finish_reason": reason, "logprobs": tokens, **said}]}

        if chat:
            await send({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        for delta in _deltas(calls):
            choice = {"index": 0, "delta": {"tool_calls": [delta]}, "finish_reason": None}
            await send({"choices": [choice]})
        if calls:
            words, reason = [], "tool_calls"
        for word in words:
            await send(event(word))
            if found := re.search(r"LATE-(\d+)", asked):
                await send({"error": {"message": "told to fail", "code": int(found[1])}})
                return response
            await self._misbehave(request, asked)
        await send(event("", reason))
        if body.get("stream_options", {}).get("include_usage"):
            await send({"choices": [], "usage": usage})
        await send("[DONE]")
        return response

    async def _misbehave(self, request: web.Request, asked: str) -> None:
        if "DROP" in asked:
            assert request.transport is not None
            request.transport.close()
            await asyncio.sleep(0)
        if "HANG" in asked:
            await asyncio.Event().wait()


def _calls(body: dict[str, Any], asked: str) -> list[dict[str, Any]]:
    """The calls that are asked for, of tools that there are."""
    names = {tool["function"]["name"] for tool in body.get("tools", [])}
    wanted = re.findall(r"CALL-(\w+)", asked) if body.get("tool_choice") != "none" else []
    return [
        {
            "id": f"call_{k}",
            "type": "function",
            "function": {"name": name, "arguments": f'{{"number": {k}}}'},
        }
        for k, name in enumerate(wanted)
        if name in names
    ]


def _deltas(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls as they are streamed: each begins, then its arguments come in two parts."""
    deltas = []
    for k, call in enumerate(calls):
        name, arguments = call["function"].values()
        deltas.append({**call, "index": k, "function": {"name": name, "arguments": ""}})
        for part in (arguments[:4], arguments[4:]):
            deltas.append({"index": k, "function": {"arguments": part}})
    return deltas


def _logprobs(body: dict[str, Any], chat: bool, words: list[str]) -> dict[str, Any] | None:
    """Those of words, as chats or completions have them; None: they are not wanted."""
    if body.get("logprobs") in (None, False) or not words:
        return None
    if not chat:
        top = [{word: -0.5, **dict.fromkeys(_others(body["logprobs"]), -1.5)} for word in words]
        values = [-0.5] * len(words)
        return {"tokens": words, "token_logprobs": values, "top_logprobs": top}

    def token(word: str, logprob: float) -> dict[str, Any]:
        return {"token": word, "logprob": logprob, "bytes": list(word.encode()), "rank": 1}

    others = [token(word, -1.5) for word in _others(body.get("top_logprobs", 0))]
    return {"content": [{**token(word, -0.5), "top_logprobs": others} for word in words]}


def _others(count: int) -> list[str]:
    return [f"other {k}" for k in range(count)]
