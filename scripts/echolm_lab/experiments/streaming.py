"""What a streamed answer costs the front: Triton with the front door in it, and the router.

The LLM is a dummy engine that gives a piece every few milliseconds; the CPU time of its process
does not count, that of Triton for its responses does. Requests name the LLM and use no examples:
nothing is retrieved.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from echolm import contracts
from echolm.serving.serve import Endpoints, ServeOptions, running_server
from echolm.settings import JudgingSettings, LLMSettings, Settings
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

MODELS = Path(__file__).resolve().parents[3] / "model_repository"
LLM = "streaming_llm"
NO_MILVUS = "http://localhost:1"
"""A server that nobody asks, so that none is started."""


@dataclass(frozen=True)
class Measured:
    """One round of streams through one front.

    Attributes:
        cpu_ms: CPU time of the front for an answer, by process.
        first_ms: from request to the first piece, of each answer.
        total_ms: from request to the final response, of each answer.
        responses: with text, for an answer.
    """

    cpu_ms: dict[str, float]
    first_ms: list[float]
    total_ms: list[float]
    responses: float


def llm_repository(directory: Path, pieces: int, piece_ms: float) -> Path:
    """The local profile's small LLM, whose engine gives words one by one."""
    source, target = MODELS / "local" / "small_llm", directory / LLM
    (target / "1").mkdir(parents=True)
    shutil.copy(source / "1" / "model.py", target / "1")
    lines = (source / "config.pbtxt").read_text(encoding="utf-8").splitlines()
    options = {
        "engine": "dummy",
        "text": " ".join(f"word{n}" for n in range(pieces)),
        "delay_s": str(piece_ms / 1000),
    }
    kept = [line for line in lines if not line.startswith(("parameters", "name"))]
    for key, value in options.items():
        kept.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    (target / "config.pbtxt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return directory


def _served(repository: Path) -> ServeOptions:
    return ServeOptions(
        profile=None,
        model_repositories=(repository,),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )


@contextlib.contextmanager
def fronts(
    settings: Settings, work: Path, intervals_ms: Sequence[float], pieces: int, piece_ms: float
) -> Iterator[list[Endpoints]]:
    """A front for each interval, with an LLM of its own, as long as the context lasts."""
    models = llm_repository(work / "models", pieces, piece_ms)
    for name in (contracts.ECHOLM_STREAM.name, contracts.ROUTER.name):
        shutil.copytree(MODELS / "core" / name, models / name)
    llm = LLMSettings(chat_template="echolm", name=LLM, cost=1.0, takes_examples=False)
    retrieval = settings.retrieval.model_copy(update={"milvus_uri": NO_MILVUS})
    with contextlib.ExitStack() as running:
        made = []
        for interval_ms in intervals_ms:
            changes = {
                "data_dir": work / f"{interval_ms:g}-data",
                "retrieval": retrieval,
                "limits": settings.limits.model_copy(update={"stream_interval_ms": interval_ms}),
                "llms": (llm,),
                "judging": JudgingSettings(kind="none"),
            }
            server = running_server(settings.model_copy(update=changes), _served(models))
            made.append(running.enter_context(server))
        yield made


def _cpu_s(endpoints: Endpoints) -> dict[str, float]:
    """CPU seconds so far of Triton and of the router's process."""
    triton = psutil.Process(endpoints.pids["triton"])
    seconds: dict[str, float] = {}
    for process in [triton, *triton.children(recursive=True)]:
        # A stub's command line has the path of its model.
        if any(f"/{LLM}/" in argument for argument in process.cmdline()):
            continue
        name = "triton" if process == triton else "router"
        times = process.cpu_times()
        seconds[name] = seconds.get(name, 0.0) + times.user + times.system
    return seconds


def _request(number: int, pieces: int) -> service_pb2.ModelInferRequest:
    values: dict[str, bytes | NDArray[Any]] = {
        "text_input": f"request {number}".encode(),
        "max_tokens": np.array(pieces, np.int32),
        "stream": np.array(True),
        "llm": LLM.encode(),
        "cache_control": b"no-cache",
    }
    request = service_pb2.ModelInferRequest(model_name="echolm_stream", id=str(number))
    for spec in contracts.ECHOLM_STREAM.inputs:
        value = values.get(spec.name)
        if value is None:
            continue
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=[1, 1])
        if isinstance(value, bytes):
            raw = len(value).to_bytes(4, "little") + value
        else:
            raw = value.tobytes()
        request.raw_input_contents.append(raw)
    return request


async def _stream_all(
    url: str, answers: int, concurrency: int, pieces: int
) -> list[tuple[float, float, int]]:
    """Of each answer: time to the first piece and to the end in ms, and responses with text."""
    numbers = iter(range(answers))
    done: list[tuple[float, float, int]] = []
    async with grpc.aio.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def client() -> None:
            for number in numbers:
                request, started = _request(number, pieces), time.perf_counter()
                first, responses, words = 0.0, 0, 0
                async for message in stub.ModelStreamInfer([request]):
                    if message.error_message:
                        raise SystemExit(f"bench_stream: {message.error_message}")
                    [text] = [
                        raw[4:]
                        for output, raw in zip(
                            message.infer_response.outputs,
                            message.infer_response.raw_output_contents,
                            strict=True,
                        )
                        if output.name == "text_output"
                    ]
                    first = first or time.perf_counter() - started
                    responses += bool(text)
                    words += len(text.split())
                if words != pieces:
                    raise SystemExit(f"bench_stream: expected {pieces} words, got {words}")
                total = time.perf_counter() - started
                done.append((first * 1e3, total * 1e3, responses))

        await asyncio.gather(*(client() for _ in range(concurrency)))
    return done


def measure(endpoints: Endpoints, answers: int, concurrency: int, pieces: int) -> Measured:
    """One round of streamed answers through one front."""
    before = _cpu_s(endpoints)
    done = asyncio.run(_stream_all(endpoints.grpc_url, answers, concurrency, pieces))
    after = _cpu_s(endpoints)
    return Measured(
        cpu_ms={name: (after[name] - before[name]) * 1e3 / answers for name in after},
        first_ms=[first for first, _, _ in done],
        total_ms=[total for _, total, _ in done],
        responses=sum(responses for _, _, responses in done) / answers,
    )
