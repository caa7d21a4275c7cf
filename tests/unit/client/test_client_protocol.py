from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import echolm_client
import numpy as np
import pytest
from echolm import contracts
from echolm_client import Answer, InvalidRequest, ServerError
from echolm_client import _protocol as protocol

ALL_OPTIONS: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "seed": 2**64 - 1,
    "stop_words": ["a", "b"],
    "bad_words": ["c"],
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "min_tokens": 2,
    "system_prompt": "s",
    "tenant": "t",
    "cache_control": "no-store",
    "llm": "large_llm",
    "cost_weight": 0.25,
}


def tensors(call: protocol.Call) -> dict[str, tuple[str, Any]]:
    return {t.name: (t.datatype, t.array.tolist()) for t in call.inputs}


def response(**values: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: np.array([v if isinstance(v, list) else [v]], dtype=object if _text(v) else None)
        for name, v in values.items()
    }


def _text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def test_tensors_are_those_of_the_server() -> None:
    server = {t.name: (t.datatype, t.optional) for t in contracts.ECHOLM_INPUTS}
    ours = {name: (datatype, True) for name, datatype in protocol.OPTIONS.items()}
    asked = {"text_input": ("BYTES", True), "messages": ("BYTES", True)}
    ours |= {**asked, "stream": ("BOOL", True)}
    for_others = (
        *contracts.SAMPLING_INPUTS,
        *contracts.NEUTRAL_INPUTS,
        *contracts.OPENAI_INPUTS,
    )
    assert {**server, **ours} == server
    assert server.keys() - ours <= {t.name for t in for_others}
    outputs = {t.name for t in contracts.ECHOLM_OUTPUTS}
    assert outputs - set(protocol.OUTPUTS) == {
        *("cum_log_probs", "output_log_probs"),
        *("tool_calls", "logprobs"),
    }
    assert set(ALL_OPTIONS) == set(echolm_client.GenerateOptions.__annotations__)
    models = {protocol.ECHOLM, protocol.ECHOLM_STREAM, protocol.FEEDBACK}
    assert models <= {model.name for model in contracts.CORE_MODELS}
    rating = protocol.rating_call("t", 1, "acme"), protocol.preference_call("t", "u")
    assert {t.name for call in rating for t in call.inputs} == {
        t.name for t in contracts.FEEDBACK.inputs
    }


def test_the_package_does_not_import_the_server() -> None:
    for file in Path(echolm_client.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [n for n in names if n.split(".")[0] == "echolm"], file


def test_only_what_was_given_is_sent() -> None:
    call = protocol.generate_call("é", {"max_tokens": None, "top_k": 0})
    assert call.model == "echolm"
    assert tensors(call) == {
        "text_input": ("BYTES", [["é".encode()]]),
        "top_k": ("INT32", [[0]]),
    }


def test_a_conversation_is_sent_as_one_text_of_json() -> None:
    messages: list[echolm_client.Message] = [
        {"role": "user", "content": "é"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    sent = tensors(protocol.generate_call(None, {}, messages=messages))
    assert list(sent) == ["messages"]
    datatype, [[data]] = sent["messages"]
    assert (datatype, json.loads(data)) == ("BYTES", messages)


def test_either_a_text_or_messages_are_sent() -> None:
    message: echolm_client.Message = {"role": "user", "content": "a"}
    for text, messages in ((None, None), ("a", [message])):
        with pytest.raises(TypeError, match="either a text or messages"):
            protocol.generate_call(text, {}, messages=messages)
    odd: list[Any] = [{"role": "user", "content": {1, 2}}]
    with pytest.raises(InvalidRequest, match="messages: expected what JSON can express"):
        protocol.generate_call(None, {}, messages=odd)


def test_every_option_has_its_type_and_a_batch_of_one() -> None:
    call = protocol.generate_call("x", ALL_OPTIONS, stream=True)  # type: ignore[arg-type]
    assert call.model == "echolm_stream"
    sent = tensors(call)
    assert sent["seed"] == ("UINT64", [[2**64 - 1]])
    assert sent["stop_words"] == ("BYTES", [[b"a", b"b"]])
    assert sent["stream"] == ("BOOL", [[True]])
    assert sent["temperature"] == ("FP32", [[0.5]])
    assert set(sent) == {"text_input", "stream", *ALL_OPTIONS}


def test_no_words_are_the_same_as_none_given() -> None:
    assert "stop_words" not in tensors(protocol.generate_call("x", {"stop_words": []}))
    assert "bad_words" not in tensors(protocol.generate_call("x", {"bad_words": []}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": 2**31}, "max_tokens: expected an integer from"),
        ({"max_tokens": 1.5}, "max_tokens: expected an integer, got 1.5"),
        ({"seed": -1}, "seed: expected an integer from 0"),
        ({"temperature": "hot"}, "temperature: expected a number"),
        ({"stop_words": "stop"}, "stop_words: expected a list"),
        ({"stop_words": [b"stop"]}, "stop_words: expected a string, got bytes"),
        ({"llm": 3}, "llm: expected a string, got int"),
        ({"tenant": "\ud800"}, r"tenant: .* U\+D800 at position 0"),
    ],
)
def test_what_a_tensor_cannot_hold_is_refused(options: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        protocol.generate_call("x", options)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'max_token'"):
        protocol.generate_call("x", {"max_token": 1})  # type: ignore[typeddict-unknown-key]


def test_a_rating_carries_token_and_score_and_a_preference_two_tokens() -> None:
    answer = assemble(response(text_output="x", feedback_token="t1"))
    assert tensors(protocol.rating_call(answer, 1)) == {
        "feedback_token": ("BYTES", [[b"t1"]]),
        "score": ("FP32", [[1.0]]),
    }
    assert tensors(protocol.preference_call(answer, "t2")) == {
        "feedback_token": ("BYTES", [[b"t1"]]),
        "preferred_over": ("BYTES", [[b"t2"]]),
    }
    for call in (
        protocol.rating_call(answer, 1, "acmé"),
        protocol.preference_call(answer, "t2", "acmé"),
    ):
        assert tensors(call)["tenant"] == ("BYTES", [["acmé".encode()]])


def test_an_answer_without_a_token_cannot_be_rated() -> None:
    with pytest.raises(InvalidRequest, match="feedback_token"):
        protocol.rating_call(assemble(response(text_output="x")), 1)
    with pytest.raises(InvalidRequest, match="preferred_over"):
        protocol.preference_call("t", "")


def assemble(*responses: dict[str, np.ndarray[Any, Any]]) -> Answer:
    assembly = protocol.Assembly()
    for outputs in responses:
        assembly.add(outputs)
    return assembly.answer(1.5)


def test_an_answer_has_every_output() -> None:
    answer = assemble(
        response(
            text_output="né".encode(),
            llm=b"small_llm",
            example_ids=[7, 3, contracts.PAD_ID],
            predicted_quality=0.5,
            solicit_feedback=True,
            feedback_token=b"t",
            degraded=b"",
            finish_reason=b"stop",
            num_input_tokens=3,
            num_output_tokens=4,
        )
    )
    assert answer == Answer("né", "small_llm", (7, 3), 0.5, True, "t", "", "stop", 3, 4, 1.5)


def test_a_stream_is_its_pieces_and_the_last_values() -> None:
    answer = assemble(
        response(text_output="a", finish_reason="", num_output_tokens=1),
        response(text_output="b", llm="small_llm"),
        response(text_output="", finish_reason="length", num_output_tokens=2),
        {},  # Triton's empty final response
    )
    assert (answer.text, answer.llm) == ("ab", "small_llm")
    assert (answer.finish_reason, answer.num_output_tokens) == ("length", 2)


def test_missing_outputs_have_neutral_values() -> None:
    answer = assemble(response(text_output="x") | {"example_ids": np.empty((1, 0), np.int64)})
    assert answer.example_ids == () and not answer.solicit_feedback
    assert math.isnan(answer.predicted_quality)


@pytest.mark.parametrize("responses", [(), ({},), (response(llm="x"),)])
def test_no_text_at_all_is_an_error(responses: Any) -> None:
    with pytest.raises(ServerError, match="text_output"):
        assemble(*responses)


def test_accepted_is_read_or_missed() -> None:
    assert protocol.accepted(response(accepted=True))
    assert not protocol.accepted(response(accepted=False))
    with pytest.raises(ServerError, match="accepted"):
        protocol.accepted({})
