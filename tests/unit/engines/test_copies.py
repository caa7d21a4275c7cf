"""Copies of an engine as one. What each engine must do, too, is in test_engine_contract.py."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from echolm.engines import create_engine
from echolm.engines.base import EngineStats, GenerationChunk, GenerationRequest, OnChunk
from echolm.engines.copies import EngineCopies, start_copies
from echolm.engines.tensorrt_llm import TensorRTLLMOptions
from echolm.engines.vllm import VLLMOptions
from echolm.errors import ConfigurationError, EchoError, InvalidRequestError, UnavailableError


class ManualEngine:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: dict[str, OnChunk] = {}
        self.cancelled: list[str] = []
        self.refusal: EchoError | None = None
        self.closed = False
        self.reported = EngineStats(ready=True, in_flight=0)

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked[request.request_id] = on_chunk

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def stats(self) -> EngineStats:
        return self.reported

    def close(self) -> None:
        self.closed = True

    def answer(self, request_id: str) -> None:
        self.asked.pop(request_id)(GenerationChunk("words", "stop", 3, 1))


def ignore(event: GenerationChunk | Exception) -> None:
    pass


def submit(engine: EngineCopies, *ids: str) -> None:
    for request_id in ids:
        engine.submit(GenerationRequest(request_id, "prompt"), ignore)


def test_the_least_busy_copy_gets_the_next_request() -> None:
    one, two = ManualEngine(), ManualEngine()
    engine = EngineCopies([one, two])
    submit(engine, "a", "b", "c")
    assert (list(one.asked), list(two.asked)) == (["a", "c"], ["b"])
    one.answer("a")
    one.answer("c")
    submit(engine, "d", "e", "f")
    assert (list(one.asked), list(two.asked)) == (["d", "e"], ["b", "f"])


def test_a_piece_that_is_not_the_last_keeps_a_copy_busy_and_an_error_frees_it() -> None:
    one, two = ManualEngine(), ManualEngine()
    engine = EngineCopies([one, two])
    submit(engine, "a")
    one.asked["a"](GenerationChunk("wo", None, 3, 1))
    submit(engine, "b")
    assert list(two.asked) == ["b"]
    one.asked.pop("a")(UnavailableError("it died"))
    submit(engine, "a")
    assert list(one.asked) == ["a"]


def test_a_request_is_cancelled_where_it_is() -> None:
    one, two = ManualEngine(), ManualEngine()
    engine = EngineCopies([one, two])
    submit(engine, "a", "b")
    engine.cancel("b")
    engine.cancel("unknown")
    assert (one.cancelled, two.cancelled) == ([], ["b"])
    two.answer("b")
    engine.cancel("b")
    assert two.cancelled == ["b"]


def test_a_copy_that_takes_nothing_is_passed_over() -> None:
    one, two = ManualEngine(), ManualEngine()
    one.refusal = UnavailableError("starting anew")
    engine = EngineCopies([one, two])
    submit(engine, "a", "b")
    assert list(two.asked) == ["a", "b"]
    two.refusal = UnavailableError("starting anew, too")
    with pytest.raises(UnavailableError, match="too"):
        submit(engine, "c")
    one.refusal = None
    submit(engine, "c")
    assert list(one.asked) == ["c"]


def test_a_request_that_is_wrong_is_wrong_for_all() -> None:
    one, two = ManualEngine(), ManualEngine()
    one.refusal = InvalidRequestError("no")
    engine = EngineCopies([one, two])
    with pytest.raises(InvalidRequestError, match="no"):
        submit(engine, "a")
    one.refusal = None
    submit(engine, "a")
    with pytest.raises(InvalidRequestError, match="in flight"):
        submit(engine, "a")
    assert (list(one.asked), list(two.asked)) == (["a"], [])


def test_figures_are_sums_and_hits_outlive_a_copy_that_starts_anew() -> None:
    one, two = ManualEngine(), ManualEngine()
    engine = EngineCopies([one, two])
    assert engine.stats() == EngineStats(ready=True, in_flight=0)
    one.reported = EngineStats(ready=True, in_flight=2, restarts=0, prefix_hit_tokens=100)
    two.reported = EngineStats(ready=True, in_flight=3, restarts=1, prefix_hit_tokens=10)
    assert engine.stats() == EngineStats(ready=True, in_flight=5, restarts=1, prefix_hit_tokens=110)
    one.reported = EngineStats(ready=False, in_flight=0, restarts=0, prefix_hit_tokens=None)
    assert engine.stats() == EngineStats(ready=True, in_flight=3, restarts=1, prefix_hit_tokens=110)
    one.reported = EngineStats(ready=True, in_flight=0, restarts=1, prefix_hit_tokens=7)
    assert engine.stats().prefix_hit_tokens == 117
    two.reported = EngineStats(ready=False, in_flight=0)
    one.reported = EngineStats(ready=False, in_flight=0)
    assert not engine.stats().ready


def test_copies_start_together_and_are_closed_together() -> None:
    both = threading.Barrier(2, timeout=10)  # Broken if one waits for the other's end.
    started: list[ManualEngine] = []

    def make() -> ManualEngine:
        both.wait()
        started.append(ManualEngine())
        return started[-1]

    start_copies([make, make]).close()
    assert [engine.closed for engine in started] == [True, True]


def test_if_one_copy_cannot_start_none_is_left() -> None:
    good = ManualEngine()

    def fail() -> ManualEngine:
        raise ConfigurationError("no memory")

    with pytest.raises(ConfigurationError, match="no memory"):
        start_copies([lambda: good, fail])
    assert good.closed


def test_copies_share_memory_where_they_share_gpus() -> None:
    def copies(**options: object) -> list[tuple[str, float]]:
        together = VLLMOptions(gpu_memory_utilization=0.6, **options)  # type: ignore[arg-type]
        return [
            (copy.gpus, copy.gpu_memory_utilization)
            for copy in together.split("gpu_memory_utilization")
            if copy.copies == 1
        ]

    assert copies() == [("", 0.6)]
    assert copies(copies=2) == [("", 0.3), ("", 0.3)]
    assert copies(copies=2, gpus="3") == [("3", 0.3), ("3", 0.3)]
    assert copies(copies=2, gpus="0,1") == [("0", 0.6), ("1", 0.6)]
    assert copies(copies=2, gpus="0,1,2,3", tensor_parallel_size=2) == [
        ("0,1", 0.6),
        ("2,3", 0.6),
    ]
    assert copies(copies=3, gpus="0,1") == [("0", 0.3), ("1", 0.6), ("0", 0.3)]


def test_copies_need_a_share_of_memory_to_divide() -> None:
    with pytest.raises(ConfigurationError, match="gpu_memory_share: expected a share for the"):
        TensorRTLLMOptions(copies=2)
    shares = TensorRTLLMOptions(copies=2, gpu_memory_share=0.8).split("gpu_memory_share")
    assert [copy.gpu_memory_share for copy in shares] == [0.4, 0.4]


def test_while_a_copy_is_dead_the_other_answers(standins: Path, checkpoint: Path) -> None:
    engine = create_engine("vllm", checkpoint, {"copies": "2"})
    try:
        assert isinstance(engine, EngineCopies)
        first = engine._copies[0]
        os.kill(first.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        deadline = time.monotonic() + 30
        while first.stats().ready:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert engine.stats().ready
        ended = threading.Event()
        events: list[GenerationChunk | Exception] = []

        def on_chunk(event: GenerationChunk | Exception) -> None:
            events.append(event)
            ended.set()

        engine.submit(GenerationRequest("1", "List the files."), on_chunk)
        assert ended.wait(30)
        assert isinstance(events[-1], GenerationChunk)
    finally:
        engine.close()
