"""The registry, engine options and the dummy engine."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from echolm.engines import ENGINES, create_engine
from echolm.engines.base import GenerationChunk, GenerationRequest
from echolm.engines.dummy import DummyEngine, DummyOptions
from echolm.engines.openvino import MODEL_FILES, OpenVINOOptions, read_context_length
from echolm.engines.options import read_options
from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError
from echolm.primitives import Sampling


class Collector:
    """Gathers the chunks of one request."""

    def __init__(self) -> None:
        self.chunks: list[GenerationChunk] = []
        self.problem: Exception | None = None
        self.ended = threading.Event()

    def __call__(self, event: GenerationChunk | Exception) -> None:
        if isinstance(event, Exception):
            self.problem = event
        else:
            self.chunks.append(event)
        if isinstance(event, Exception) or event.is_last:
            self.ended.set()

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


def test_unknown_engine_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dummy, openvino, .*got 'gpt'"):
        create_engine("gpt", tmp_path)


def test_registry_makes_each_engine_only_when_asked() -> None:
    code = """
import sys, echolm.engines as e
print(*[module for module in sys.modules for engine in e.ENGINES if engine in module])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
    assert set(ENGINES) >= {"openvino", "vllm", "dummy"}


def test_missing_model_files_are_named_with_the_way_to_make_them(tmp_path: Path) -> None:
    for name in MODEL_FILES[1:]:
        (tmp_path / name).touch()
    with pytest.raises(ConfigurationError) as error:
        create_engine("openvino", tmp_path)
    for part in (MODEL_FILES[0], str(tmp_path), "echolm build --help"):
        assert part in str(error.value)


def test_options_are_converted_from_text() -> None:
    values = {"max_num_seqs": "8", "prefix_caching": "false", "kv_cache_precision": "u8"}
    options = read_options(OpenVINOOptions, values, "openvino")
    assert options == OpenVINOOptions(max_num_seqs=8, prefix_caching=False, kv_cache_precision="u8")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_seqs": "8"}, "'max_seqs'"),
        ({"max_num_seqs": "many"}, "max_num_seqs: expected int, got 'many'"),
        ({"prefix_caching": "maybe"}, "prefix_caching: expected bool"),
        ({"max_num_seqs": "0"}, "max_num_seqs: expected at least 1, got 0"),
    ],
)
def test_wrong_option_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_options(OpenVINOOptions, values, "openvino")


def test_context_length_comes_from_the_models_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 640}')
    assert read_context_length(tmp_path) == 640


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"max_position_embeddings": "x"}'])
def test_context_length_that_is_not_there_is_a_configuration_error(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match="context_length"):
        read_context_length(tmp_path)


def test_dummy_gives_one_chunk_unless_streaming() -> None:
    engine = DummyEngine(DummyOptions(text="one two three"))
    whole, stream = Collector(), Collector()
    engine.submit(GenerationRequest("1", "a b"), whole)
    engine.submit(GenerationRequest("2", "a b", streaming=True), stream)
    assert [chunk.text for chunk in whole.chunks] == ["one two three"]
    assert whole.chunks[0].finish_reason == "stop"
    assert (whole.chunks[0].num_input_tokens, whole.chunks[0].num_output_tokens) == (2, 3)
    assert [chunk.text for chunk in stream.chunks] == ["one", " two", " three"]
    assert [chunk.finish_reason for chunk in stream.chunks] == [None, None, "stop"]


def test_dummy_keeps_max_tokens_and_stop_words() -> None:
    engine = DummyEngine(DummyOptions(text="one two three"))
    short, stopped = Collector(), Collector()
    engine.submit(GenerationRequest("1", "a", Sampling(max_tokens=2)), short)
    engine.submit(GenerationRequest("2", "a", Sampling(stop=(" three",))), stopped)
    assert (short.text, short.chunks[-1].finish_reason) == ("one two", "length")
    assert (stopped.text, stopped.chunks[-1].stop_reason) == ("one two", " three")


def test_dummy_delays_cancels_and_counts_what_is_in_flight() -> None:
    engine = DummyEngine(DummyOptions(delay_s=0.05))
    slow, cancelled = Collector(), Collector()
    engine.submit(GenerationRequest("1", "a"), slow)
    engine.submit(GenerationRequest("2", "a"), cancelled)
    assert engine.stats().in_flight == 2
    engine.cancel("2")
    engine.cancel("unknown")
    assert cancelled.chunks[-1].finish_reason == "cancelled"
    assert slow.ended.wait(5)
    assert engine.stats().in_flight == 0
    engine.close()


def test_dummy_answers_otherwise_where_told() -> None:
    engine = DummyEngine(DummyOptions(if_contains="why", then_text="because"))
    plain, other = Collector(), Collector()
    engine.submit(GenerationRequest("1", "how"), plain)
    engine.submit(GenerationRequest("2", "and why"), other)
    assert (plain.text, other.text) == ("ok", "because")


def test_dummy_fails_when_told() -> None:
    engine = DummyEngine(DummyOptions(fail_if_contains="boom"))
    good, bad = Collector(), Collector()
    engine.submit(GenerationRequest("1", "go"), good)
    engine.submit(GenerationRequest("2", "boom"), bad)
    assert good.text == "ok"
    assert isinstance(bad.problem, UnavailableError)
    assert engine.stats().in_flight == 0


def test_closed_engine_fails_what_is_in_flight_and_takes_nothing() -> None:
    engine = DummyEngine(DummyOptions(delay_s=60))
    waiting = Collector()
    engine.submit(GenerationRequest("1", "a"), waiting)
    with pytest.raises(InvalidRequestError, match="in flight"):
        engine.submit(GenerationRequest("1", "a"), waiting)
    engine.close()
    engine.close()
    assert isinstance(waiting.problem, UnavailableError)
    with pytest.raises(UnavailableError):
        engine.submit(GenerationRequest("2", "a"), waiting)
