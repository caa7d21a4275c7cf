"""What every engine must do, whatever it is made of.

vLLM and TensorRT-LLM need a GPU; in their place stand models of words with the libraries'
classes and signatures (``tests/standins``), in the engines' real worker processes. Where vLLM
and a GPU are there, a real vLLM with random weights is tested, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from echolm.engines import create_engine
from echolm.engines.base import GenerationChunk, GenerationRequest, LLMEngine
from echolm.errors import ContextLengthError, InvalidRequestError, UnavailableError
from echolm.primitives import Sampling

ROOT = Path(__file__).resolve().parents[3]
STANDINS = ROOT / "tests" / "standins"
SMALL = ROOT / "model_repository" / "local" / "small_llm" / "1" / "openvino"
RAMBLING = {"temperature": 50.0}
"""Nearly every token is as likely as any other, so that few answers end soon."""
PROMPT = "List the files of the folder that are older than 7 days and sort them by size."


class Answer:
    """Gathers the chunks of one request."""

    def __init__(self) -> None:
        self.chunks: list[GenerationChunk] = []
        self.problem: Exception | None = None
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self, event: GenerationChunk | Exception) -> None:
        assert not self.ended.is_set(), "nothing may come after the last chunk"
        if isinstance(event, Exception):
            self.problem = event
        else:
            self.chunks.append(event)
        self.begun.set()
        if isinstance(event, Exception) or event.is_last:
            self.ended.set()

    def wait(self) -> Answer:
        assert self.ended.wait(60), "no answer"
        return self

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def last(self) -> GenerationChunk:
        assert self.problem is None, self.problem
        return self.chunks[-1]


@dataclass
class Subject:
    """An engine under test.

    Attributes:
        context: its context length in tokens.
        slow: a prompt whose answer takes seconds.
        bos: what its tokenizer puts in front of a text.
        tells_tokens: whether it takes ``Sampling.top_logprobs``.
    """

    engine: LLMEngine
    context: int
    slow: str = PROMPT
    bos: str = ""
    slow_sampling: dict[str, Any] = field(default_factory=dict)
    numbers: int = 0
    tells_tokens: bool = False

    def ask(
        self,
        prompt: str = PROMPT,
        streaming: bool = False,
        add_special_tokens: bool = True,
        **sampling: Any,
    ) -> Answer:
        self.numbers += 1
        answer = Answer()
        request = GenerationRequest(
            str(self.numbers),
            prompt,
            Sampling(**{"max_tokens": 24, **sampling}),
            streaming,
            add_special_tokens,
        )
        self.engine.submit(request, answer)
        return answer

    def ask_slowly(self, streaming: bool = True) -> Answer:
        sampling = {"max_tokens": self.context - 60, **self.slow_sampling}
        return self.ask(self.slow, streaming, **sampling)


@pytest.fixture(
    scope="module", params=["openvino", "vllm", "tensorrt_llm", "three of vllm", "real vllm"]
)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    with pytest.MonkeyPatch.context() as patch:
        subject = make(request.param, tmp_path_factory.mktemp("model"), patch)
        subject.tells_tokens = "vllm" in request.param
        yield subject
        subject.engine.close()


def make(name: str, model_dir: Path, patch: pytest.MonkeyPatch) -> Subject:
    if name == "openvino":
        options = {"context_length": 512}
        return Subject(create_engine(name, SMALL, options), 512, slow_sampling=RAMBLING)
    if name == "real vllm":
        return Subject(real_vllm(model_dir), 512, slow_sampling=RAMBLING)
    use_standins(patch)
    (model_dir / "config.json").write_text('{"max_position_embeddings": 512}')
    number, _, of = name.rpartition(" of ")
    options = {"copies": "3"} if number else {}
    return Subject(create_engine(of, model_dir, options), 512, f"slowly {PROMPT}", "<s> ")


def use_standins(patch: pytest.MonkeyPatch) -> None:
    """Let this process and its workers find the stand-ins first."""
    patch.setenv("PYTHONPATH", str(STANDINS) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    patch.syspath_prepend(str(STANDINS))


def real_vllm(model_dir: Path) -> LLMEngine:
    """A vLLM of random weights; ``TEST_VLLM_PYTHON`` may name an interpreter that has it."""
    python = os.environ.get("TEST_VLLM_PYTHON", "")
    if not python and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"]).returncode:
        pytest.skip("no NVIDIA GPU")
    config = json.loads((SMALL / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0}))
    shutil.copy(SMALL / "tokenizer.json", model_dir)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (model_dir / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    options = {
        "load_format": "dummy",
        "max_model_len": 512,
        "gpu_memory_utilization": 0.2,
        "enforce_eager": True,
        "python": python,
    }
    return create_engine("vllm", model_dir, options)


def test_a_whole_answer_is_one_chunk_with_its_counts(subject: Subject) -> None:
    answer = subject.ask().wait()
    assert len(answer.chunks) == 1
    assert answer.last.finish_reason in ("stop", "length")
    assert answer.text
    assert answer.last.num_input_tokens > 5
    assert 0 < answer.last.num_output_tokens <= 24
    assert answer.last.cumulative_logprob is None
    assert answer.last.stop_reason is None


def test_a_prompt_that_has_its_special_tokens_gets_no_more(subject: Subject) -> None:
    added = subject.ask().wait().last.num_input_tokens
    given = subject.ask(subject.bos + PROMPT, add_special_tokens=False).wait().last
    assert given.num_input_tokens == added
    bare = subject.ask(add_special_tokens=False).wait().last
    assert bare.num_input_tokens == added - len(subject.bos.split())


def test_a_stream_gives_the_same_text_in_pieces(subject: Subject) -> None:
    # Slowly, since pieces that wait for their receiver become one.
    whole = subject.ask(subject.slow).wait()
    stream = subject.ask(subject.slow, streaming=True).wait()
    assert stream.text == whole.text
    assert len(stream.chunks) > 1
    assert [chunk.finish_reason for chunk in stream.chunks[:-1]] == [None] * (
        len(stream.chunks) - 1
    )
    assert all(chunk.text for chunk in stream.chunks[:-1])
    counts = [chunk.num_output_tokens for chunk in stream.chunks]
    assert counts == sorted(counts)
    assert counts[-1] == whole.last.num_output_tokens


@pytest.mark.parametrize("streaming", [False, True])
def test_max_tokens_end_an_answer(subject: Subject, streaming: bool) -> None:
    answer = subject.ask(streaming=streaming, max_tokens=4).wait()
    assert (answer.last.finish_reason, answer.last.num_output_tokens) == ("length", 4)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stop_word_ends_an_answer_and_is_told_but_not_in_it(
    subject: Subject, streaming: bool
) -> None:
    whole = subject.ask().wait().text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
    answer = subject.ask(streaming=streaming, stop=("never said", stop)).wait()
    assert answer.text == whole[: whole.index(stop)]
    assert (answer.last.finish_reason, answer.last.stop_reason) == ("stop", stop)


def test_a_seed_repeats_an_answer_and_without_one_answers_differ(subject: Subject) -> None:
    hot = {"temperature": 2.0, "top_p": 0.95, "top_k": 200}
    seeded = [subject.ask(**hot, seed=2**64 - 5).wait().text for _ in range(2)]
    assert seeded[0] == seeded[1]
    other = {subject.ask(**hot).wait().text for _ in range(3)}
    assert len(other | {seeded[0]}) > 1


def test_penalties_and_sampling_parameters_are_taken(subject: Subject) -> None:
    answer = subject.ask(
        temperature=0.7,
        top_p=0.5,
        top_k=5,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.1,
        min_tokens=2,
    ).wait()
    assert answer.last.finish_reason in ("stop", "length")


@pytest.mark.parametrize("streaming", [False, True])
def test_the_log_probability_is_told_when_asked_for(subject: Subject, streaming: bool) -> None:
    answer = subject.ask(streaming=streaming, logprobs=True).wait()
    assert answer.last.cumulative_logprob is not None
    assert answer.last.cumulative_logprob <= 0
    each = [p for chunk in answer.chunks for p in chunk.token_logprobs]
    assert len(each) == answer.last.num_output_tokens
    assert sum(each) == pytest.approx(answer.last.cumulative_logprob, abs=1e-3)
    assert not subject.ask(streaming=streaming).wait().last.token_logprobs


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_are_told_with_likely_ones_beside_them(subject: Subject, streaming: bool) -> None:
    if not subject.tells_tokens:
        pytest.skip("this engine takes no `logprobs`")
    answer = subject.ask(streaming=streaming, top_logprobs=3).wait()
    tokens = [token for chunk in answer.chunks for token in chunk.logprobs]
    assert len(tokens) == answer.last.num_output_tokens
    for token in tokens:
        likely = token["top_logprobs"]
        assert len(likely) == 3
        assert all(one["bytes"] == list(one["token"].encode()) for one in (token, *likely))
        assert all(-9_999.0 <= one["logprob"] <= 0.0 for one in (token, *likely))
    [*only] = subject.ask(streaming=streaming, top_logprobs=0).wait().last.logprobs
    assert only and not any(token["top_logprobs"] for token in only)
    assert not subject.ask(streaming=streaming, logprobs=True).wait().last.logprobs


@pytest.mark.parametrize("streaming", [False, True])
def test_a_cancelled_answer_ends_soon_with_what_there_is(subject: Subject, streaming: bool) -> None:
    for _ in range(5):  # A random answer can end by itself just before.
        answer = subject.ask_slowly(streaming)
        if streaming:
            assert answer.begun.wait(30)
        else:
            time.sleep(0.05)
        subject.engine.cancel(str(subject.numbers))
        started = time.monotonic()
        if answer.wait().last.finish_reason == "cancelled":
            break
    assert answer.last.finish_reason == "cancelled"
    assert time.monotonic() - started < 5
    assert answer.text
    assert answer.last.num_input_tokens > 5
    assert subject.engine.stats().in_flight == 0


def test_cancelling_at_once_or_what_is_unknown_does_no_harm(subject: Subject) -> None:
    answer = subject.ask_slowly()
    subject.engine.cancel(str(subject.numbers))
    subject.engine.cancel("unknown")
    assert answer.wait().last.finish_reason == "cancelled"
    subject.engine.cancel(str(subject.numbers))
    assert subject.ask().wait().text


@pytest.mark.parametrize("what", ["prompt", "max_tokens"])
def test_what_exceeds_the_context_is_refused_alone(subject: Subject, what: str) -> None:
    good = [subject.ask(streaming=True) for _ in range(3)]
    long = PROMPT * 400 if what == "prompt" else PROMPT
    bad = subject.ask(long, max_tokens=8 if what == "prompt" else subject.context)
    with pytest.raises(ContextLengthError, match=rf"expected at most {subject.context} tokens"):
        raise bad.wait().problem or AssertionError(bad.text)
    assert len({answer.wait().text for answer in good}) == 1


def test_the_whole_context_can_be_used(subject: Subject) -> None:
    tokens = subject.ask().wait().last.num_input_tokens
    answer = subject.ask(max_tokens=subject.context - tokens, stop=(" ",)).wait()
    assert answer.last.finish_reason in ("stop", "length")
    over = subject.ask(max_tokens=subject.context - tokens + 1).wait()
    assert isinstance(over.problem, ContextLengthError)


def test_an_id_in_flight_is_refused(subject: Subject) -> None:
    slow = subject.ask_slowly()
    with pytest.raises(InvalidRequestError, match="in flight"):
        subject.engine.submit(GenerationRequest(str(subject.numbers), PROMPT), Answer())
    subject.engine.cancel(str(subject.numbers))
    slow.wait()


def test_many_requests_run_together_and_keep_apart(subject: Subject) -> None:
    prompts = [f"{PROMPT} Take folder number {n}." for n in range(12)]
    alone = [subject.ask(prompt).wait().text for prompt in prompts]
    together = [subject.ask(prompts[n % 12], n % 2 == 0) for n in range(60)]
    assert [answer.wait().text for answer in together] == [alone[n % 12] for n in range(60)]
    assert subject.engine.stats().in_flight == 0


def test_a_repeated_prompt_is_found_in_the_prefix_cache(subject: Subject) -> None:
    prompt = " ".join(f"{word} {PROMPT}" for word in ("First", "then", "again", "at last"))
    tokens = subject.ask(prompt).wait().last.num_input_tokens
    before = subject.engine.stats().prefix_hit_tokens
    assert before is not None
    subject.ask(prompt).wait()
    deadline = time.monotonic() + 5
    while subject.engine.stats().prefix_hit_tokens == before and time.monotonic() < deadline:
        time.sleep(0.01)  # The count comes with the next message of the worker.
        subject.ask(max_tokens=1).wait()
    after = subject.engine.stats().prefix_hit_tokens
    assert after is not None
    assert after - before >= tokens // 2


class TestClose:
    """Last: an engine that is closed answers nothing any more."""

    def test_a_closed_engine_fails_what_is_in_flight_and_takes_nothing(
        self, subject: Subject
    ) -> None:
        slow = subject.ask_slowly()
        assert slow.begun.wait(30)
        subject.engine.close()
        subject.engine.close()
        assert isinstance(slow.wait().problem, UnavailableError)
        assert not subject.engine.stats().ready
        with pytest.raises(UnavailableError, match="closed"):
            subject.ask()
