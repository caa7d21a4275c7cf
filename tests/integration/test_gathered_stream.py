"""Streams whose pieces gather, through a real Triton: the router's and the LLM model's part."""

from __future__ import annotations

import json
import queue
import shutil
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from dummy_llm import REPOSITORY, core_with, dummy_llm
from echolm import contracts
from echolm.serving import Endpoints, running_server
from echolm.settings import JudgingSettings, LLMSettings, Settings
from nvidia_llms import write_ensemble
from triton_calls import Caller, inputs, outputs, proof, streams, text

pytestmark = pytest.mark.timeout(120)

WORDS = [f"word{n}" for n in range(24)]
ANSWER = " ".join(WORDS)
OPTIONS: dict[str, Any] = {"cache_control": "no-cache", "max_tokens": 64}


@pytest.fixture(scope="module")
def endpoints(
    server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoints]:
    """An LLM of ours and one of NVIDIA's; no answer lasts as long as the interval."""
    folder = tmp_path_factory.mktemp("gathered")
    models = folder / "models"
    shutil.copytree(REPOSITORY / "local" / "embedder", models / "embedder")
    dummy_llm("ours", {"text": ANSWER, "delay_s": "0.002"}, models)
    write_ensemble(models / "theirs", True, folder / "log.jsonl", counts=True)
    settings = server_settings.model_copy(
        update={
            "data_dir": folder / "data",
            "limits": server_settings.limits.model_copy(update={"stream_interval_ms": 1_000.0}),
            "judging": JudgingSettings(kind="none"),
            "llms": (
                LLMSettings(chat_template="echolm", name="ours", cost=1.0, takes_examples=False),
                LLMSettings(
                    chat_template="echolm",
                    name="theirs",
                    contract="inflight_batcher",
                    cost=2.0,
                    takes_examples=False,
                ),
            ),
        }
    )
    with running_server(settings, core_with(models)) as running:
        yield running


def answered(arrived: queue.Queue[Any]) -> list[Any]:
    """The responses to one request, up to the final one."""
    results = []
    while True:
        result, error = arrived.get(timeout=60)
        assert error is None, error
        results.append(result)
        if result.get_response().parameters["triton_final_response"].bool_param:
            return results


def streamed(endpoints: Endpoints, **row: Any) -> tuple[list[str], dict[str, Any]]:
    """The pieces of an answer, and the outputs of its final response."""
    with streams(endpoints) as (client, arrived):
        client.async_stream_infer(
            "echolm_stream",
            inputs(grpcclient, [{"stream": True, **OPTIONS, **row}]),
            enable_empty_final_response=True,
        )
        *pieces, last = [outputs(r, contracts.ECHOLM_STREAM) for r in answered(arrived)]
    return [text(piece, "text_output") for piece in pieces], last


def test_pieces_gather_over_grpc(endpoints: Endpoints) -> None:
    pieces, last = streamed(endpoints, text_input="hello", llm="ours")
    assert pieces[0] == WORDS[0]
    assert "".join(pieces) == ANSWER
    assert len(pieces) < len(WORDS) / 2
    assert text(last, "text_output") == ""
    assert text(last, "finish_reason") == "stop"
    assert last["num_output_tokens"].item() == len(WORDS)


def test_pieces_gather_over_http(endpoints: Endpoints) -> None:
    body = {"text_input": "hello", "llm": "ours", "stream": True, **OPTIONS}
    request = urllib.request.Request(
        f"{endpoints.http_url}/v2/models/echolm_stream/generate_stream",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as page:
        lines = page.read().decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert events[0]["text_output"] == WORDS[0]
    assert "".join(event["text_output"] for event in events) == ANSWER
    assert len(events) < len(WORDS) / 2
    assert events[-1]["finish_reason"] == "stop"


def test_a_stop_word_and_the_token_limit_cut_as_without_gathering(endpoints: Endpoints) -> None:
    pieces, last = streamed(endpoints, text_input="hello", llm="ours", stop_words=["word7"])
    assert "".join(pieces) == " ".join(WORDS[:7]) + " "
    assert text(last, "finish_reason") == "stop"
    pieces, last = streamed(endpoints, text_input="hello", llm="ours", max_tokens=5)
    assert "".join(pieces) == " ".join(WORDS[:5])
    assert text(last, "finish_reason") == "length"


def test_pieces_of_an_llm_that_does_not_gather_gather_in_the_router(endpoints: Endpoints) -> None:
    whole = Caller(endpoints).ask("hello", llm="theirs", **OPTIONS)
    pieces, last = streamed(endpoints, text_input="hello", llm="theirs")
    assert "".join(pieces) == text(whole, "text_output")
    assert len(pieces) == 2
    assert text(last, "finish_reason") == text(whole, "finish_reason")


@pytest.mark.parametrize(
    ("parameters", "gathers"), [({}, False), ({"stream_interval_ms": 1e3}, True)]
)
def test_the_llm_model_gathers_for_a_caller_that_asks(
    endpoints: Endpoints, parameters: dict[str, Any], gathers: bool
) -> None:
    values = {
        "text_input": np.array([b"hello"], np.object_),
        "streaming": np.array([True]),
        "sampling_param_exclude_input_from_output": np.array([True]),
        "sampling_param_max_tokens": np.array([64], np.int32),
    }
    tensors = []
    for spec in contracts.LLM_API_INPUTS:
        if spec.name in values:
            tensor = grpcclient.InferInput(spec.name, [1], spec.datatype)
            tensor.set_data_from_numpy(values[spec.name])
            tensors.append(tensor)
    parameters = {**parameters, **proof(endpoints, "ours", tensors)}
    with streams(endpoints) as (client, arrived):
        client.async_stream_infer(
            "ours", tensors, enable_empty_final_response=True, parameters=parameters
        )
        texts = [r.as_numpy("text_output") for r in answered(arrived)]
    pieces = [one.item().decode() for one in texts if one is not None]
    assert "".join(pieces) == ANSWER
    assert (len(pieces) < len(WORDS) / 2) is gathers
