"""What the bench with peers serves and calls by itself."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from echolm_lab.experiments.load import closed_loop
from echolm_lab.experiments.peers import embedding_server, llm_server
from echolm_lab.experiments.peers.clients import chat, generate, parse_head
from echolm_lab.experiments.peers.errors import PeerUnavailableError
from echolm_lab.experiments.peers.http_server import Handler, listen, parse_request
from echolm_lab.experiments.peers.processes import ProcessTree, server
from echolm_lab.tasks import Workload
from numpy.typing import NDArray

ITEMS = Workload(seed=0).stream(40, seed=1, phase="live")


async def listening(handlers: Mapping[str, Handler]) -> tuple[asyncio.AbstractServer, int]:
    made = await listen(0, handlers)
    assert isinstance(made, asyncio.Server)
    return made, made.sockets[0].getsockname()[1]


def lengths(texts: Sequence[str]) -> NDArray[np.float32]:
    """Stands for an embedder: the text's length in each of two dimensions."""
    return np.array([[len(text)] * 2 for text in texts], np.float32)


def test_a_request_is_parsed_when_it_is_whole() -> None:
    head = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
    whole = head + b"body"

    assert parse_request(bytearray(head[:-1])) is None
    assert parse_request(bytearray(whole[:-1])) is None
    assert parse_request(bytearray(whole + b"GET /next")) == ("/v1/x", b"body", len(whole))


def test_a_response_says_its_length_or_comes_in_chunks() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n") == (200, 12)
    assert parse_head(b"HTTP/1.1 500 No\r\nTransfer-Encoding: Chunked\r\n\r\n") == (500, None)
    with pytest.raises(RuntimeError, match="expected content-length or chunks"):
        parse_head(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")


async def test_all_requests_of_a_load_are_answered_and_counted() -> None:
    made, port = await listening(llm_server.handlers())
    async with made, chat(port)() as client:
        run = await closed_loop(client, ITEMS, concurrency=8)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /calls HTTP/1.1\r\n\r\n")
        counted = await reader.readuntil(b"}")
        writer.close()

    assert {record.reply.text for record in run.records if record.reply} == {llm_server.ANSWER}
    assert run.failed == 0
    assert json.loads(counted.split(b"\r\n\r\n")[1]) == {"calls": len(ITEMS)}


async def test_what_a_server_fails_at_is_an_error_of_that_request() -> None:
    async def fail(body: Any) -> bytes:
        raise ValueError("not today")

    made, port = await listening({"/v1/chat/completions": fail})
    async with made, chat(port)() as client:
        with pytest.raises(RuntimeError, match=r"expected 200, got 500.*not today"):
            await client.send(ITEMS[0])


async def test_an_answer_in_chunks_is_put_together() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b'f\r\n{"text_output":\r\n6\r\n "ab"}\r\n0\r\n\r\n')

    made = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with made, generate(made.sockets[0].getsockname()[1], "echolm")() as client:
        assert (await client.send(ITEMS[0])).text == "ab"


async def test_embeddings_come_back_to_who_asked_though_they_are_made_together() -> None:
    batches: list[int] = []

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        batches.append(len(texts))
        return lengths(texts)

    batcher = embedding_server.Batcher(embed)
    asked = [["a"], ["bb", "ccc"], ["dddd"]]
    vectors = await asyncio.gather(*(batcher(texts) for texts in asked))

    assert [vector.tolist() for vector in vectors] == [lengths(texts).tolist() for texts in asked]
    assert sum(batches) == 4
    assert len(batches) < 3


def test_embeddings_are_floats_or_base64_as_the_request_says() -> None:
    vectors = lengths(["abc"])

    plain = json.loads(embedding_server.response(vectors, as_base64=False))
    packed = json.loads(embedding_server.response(vectors, as_base64=True))

    assert plain["data"][0]["embedding"] == [3.0, 3.0]
    decoded = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), np.float32)
    assert decoded.tolist() == [3.0, 3.0]


def test_processes_that_are_told_not_to_count_do_not() -> None:
    program = [sys.executable, "-c", "print(flush=True); input()", "small_llm"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        everyone = ProcessTree(process.pid)
        assert [one.pid for one in everyone.processes()] == [process.pid]
        assert everyone.memory_mib() > 0
        assert ProcessTree(process.pid, without=("small_llm",)).processes() == []
        process.communicate(b"\n")


def test_a_server_that_ends_by_itself_is_an_error_with_its_log(tmp_path: Any) -> None:
    program = [sys.executable, "-c", "import sys; sys.exit('no such backend')"]
    with (
        pytest.raises(PeerUnavailableError, match=r"status 1;(.|\n)*no such backend"),
        server("peer", program, tmp_path, ready=lambda: False),
    ):
        pass
