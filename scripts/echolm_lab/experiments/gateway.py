"""What the gateway costs over the direct gRPC call: the CPU time of its processes.

The LLM is the dummy engine of :mod:`echolm_lab.experiments.streaming`. Requests name it and use no
examples: nothing is retrieved.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import orjson
import psutil
from echolm import contracts
from echolm.serving.serve import Endpoints, ServeOptions, running_server
from echolm.settings import GatewaySettings, JudgingSettings, LLMSettings, Settings
from tritonclient.grpc import service_pb2, service_pb2_grpc

from echolm_lab.experiments.streaming import LLM, MODELS, NO_MILVUS, llm_repository


@contextlib.contextmanager
def served(work: Path, pieces: int, piece_ms: float, workers: int) -> Iterator[Endpoints]:
    """A server with a gateway, as long as the context lasts; each piece is sent by itself."""
    models = llm_repository(work / "models", pieces, piece_ms)
    for contract in (contracts.ECHOLM, contracts.ECHOLM_STREAM, contracts.ROUTER):
        shutil.copytree(MODELS / "core" / contract.name, models / contract.name)
    settings = Settings()
    changes = {
        "data_dir": work / "data",
        "retrieval": settings.retrieval.model_copy(update={"milvus_uri": NO_MILVUS}),
        "limits": settings.limits.model_copy(update={"stream_interval_ms": 0.0}),
        "llms": (LLMSettings(chat_template="echolm", name=LLM, cost=1.0, takes_examples=False),),
        "judging": JudgingSettings(kind="none"),
        "gateway": GatewaySettings(workers=workers),
    }
    options = ServeOptions(
        profile=None,
        model_repositories=(models,),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        gateway_port=0,
    )
    with running_server(settings.model_copy(update=changes), options) as endpoints:
        yield endpoints


def cpu_s(endpoints: Endpoints) -> dict[str, float]:
    """CPU seconds so far of Triton with its models, and of the gateway's processes."""
    seconds = {}
    for name in ("triton", "gateway"):
        root = psutil.Process(endpoints.pids[name])
        times = [p.cpu_times() for p in [root, *root.children(recursive=True)]]
        seconds[name] = sum(one.user + one.system for one in times)
    return seconds


def measure(endpoints: Endpoints, way: str, requests: int, concurrency: int) -> dict[str, float]:
    """CPU time in ms a request, by process, and pieces a request.

    Args:
        way: ``direct`` or ``gateway``, for whole answers; or the same with `` stream``.
    """
    before = cpu_s(endpoints)
    pieces = asyncio.run(_send(endpoints, way, requests, concurrency))
    after = cpu_s(endpoints)
    used = {f"{name}_ms": (after[name] - before[name]) * 1e3 / requests for name in after}
    return {**used, "pieces": pieces / requests}


async def _send(endpoints: Endpoints, way: str, requests: int, concurrency: int) -> int:
    numbers = iter(range(requests))
    kind, _, stream = way.partition(" ")
    clients = [
        (_direct if kind == "direct" else _through_gateway)(endpoints, numbers, bool(stream))
        for _ in range(concurrency)
    ]
    return sum(await asyncio.gather(*clients))


async def _direct(endpoints: Endpoints, numbers: Iterator[int], stream: bool) -> int:
    pieces = 0
    async with grpc.aio.insecure_channel(endpoints.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for number in numbers:
            name = contracts.ECHOLM_STREAM.name if stream else contracts.ECHOLM.name
            request = service_pb2.ModelInferRequest(model_name=name)
            values = {
                "text_input": f"request {number}".encode(),
                "llm": LLM.encode(),
                "cache_control": b"no-cache",
            }
            for key, value in values.items():
                request.inputs.add(name=key, datatype="BYTES", shape=[1, 1])
                request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
            if not stream:
                await stub.ModelInfer(request)
                continue
            request.inputs.add(name="stream", datatype="BOOL", shape=[1, 1])
            request.raw_input_contents.append(b"\1")
            async for message in stub.ModelStreamInfer([request]):
                if message.error_message:
                    raise SystemExit(f"bench_gateway: {message.error_message}")
                pieces += 1
    return pieces


async def _through_gateway(endpoints: Endpoints, numbers: Iterator[int], stream: bool) -> int:
    """One connection of a client that takes little CPU itself."""
    address = urlsplit(endpoints.gateway_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    pieces = 0
    for number in numbers:
        body = orjson.dumps(
            {
                "model": LLM,
                "messages": [{"role": "user", "content": f"request {number}"}],
                "cache_control": "no-cache",
                "stream": stream,
            }
        )
        head = f"POST {address.path}/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise SystemExit(f"bench_gateway: {answer.decode()}")
        if stream:
            text = await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            pieces += text.count(b"data: {")
        else:
            length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
    writer.close()
    return pieces
