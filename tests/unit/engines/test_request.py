"""Requests of the LLM-API contract: what is taken, what is refused and how."""

from __future__ import annotations

import math
from typing import Any

import pytest
from echolm.engines.request import is_stop, parse_request
from echolm.errors import InvalidRequestError
from echolm.primitives import Sampling


def parse(**inputs: Any) -> Any:
    values = {key: value if isinstance(value, list) else [value] for key, value in inputs.items()}
    return parse_request("1", {"text_input": [b"hello"], **values})


def test_defaults_are_greedy_one_chunk_and_echo() -> None:
    request = parse()
    assert request.generation.prompt == "hello"
    assert request.generation.sampling == Sampling()
    assert request.generation.sampling.temperature == 0
    assert not request.generation.streaming
    assert request.echo
    assert request.generation.add_special_tokens
    assert not request.return_finish_reason


def test_all_inputs_arrive() -> None:
    request = parse(
        streaming=True,
        sampling_param_max_tokens=7,
        sampling_param_temperature=0.5,
        sampling_param_top_p=0.25,
        sampling_param_top_k=3,
        sampling_param_seed=2**64 - 1,
        sampling_param_stop=[b"\n", "é".encode()],
        sampling_param_frequency_penalty=0.5,
        sampling_param_presence_penalty=-0.5,
        sampling_param_repetition_penalty=1.5,
        sampling_param_min_tokens=2,
        sampling_param_bad_words=[b"no", b"never"],
        embedding_bias_words=[b"yes"],
        embedding_bias_weights=[2.0],
        guided_decoding_guide_type=b"regex",
        guided_decoding_guide=b"[0-9]+",
        sampling_param_best_of=1,
        sampling_param_exclude_input_from_output=True,
        sampling_param_add_special_tokens=False,
        return_finish_reason=True,
        return_stop_reason=True,
        return_cumulative_logprob=True,
        return_log_probs=True,
    )
    assert request.generation.streaming
    assert not request.generation.add_special_tokens
    assert request.generation.sampling == Sampling(
        7,
        0.5,
        0.25,
        3,
        2**64 - 1,
        ("\n", "é"),
        0.5,
        -0.5,
        repetition_penalty=1.5,
        min_tokens=2,
        bad_words=("no", "never"),
        embedding_bias=(("yes", 2.0),),
        guide_type="regex",
        guide="[0-9]+",
        logprobs=True,
    )
    assert not request.echo
    assert request.return_finish_reason
    assert request.return_stop_reason
    assert request.return_cumulative_logprob
    assert request.return_log_probs


@pytest.mark.parametrize("name", ["return_cumulative_logprob", "return_log_probs"])
def test_either_output_takes_log_probabilities_from_the_engine(name: str) -> None:
    request = parse(**{name: True})
    assert request.generation.sampling == Sampling(logprobs=True)
    assert request.return_log_probs is (name == "return_log_probs")
    assert request.return_cumulative_logprob is (name == "return_cumulative_logprob")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_input", b""),
        ("text_input", b"\xff\xfe"),
        ("text_input", []),
        ("text_input", [b"a", b"b"]),
        ("sampling_param_max_tokens", 0),
        ("sampling_param_max_tokens", -1),
        ("sampling_param_max_tokens", [1, 2]),
        ("sampling_param_temperature", -0.1),
        ("sampling_param_temperature", math.nan),
        ("sampling_param_temperature", math.inf),
        ("sampling_param_top_p", 0.0),
        ("sampling_param_top_p", 1.1),
        ("sampling_param_top_p", math.nan),
        ("sampling_param_top_k", -1),
        ("sampling_param_best_of", 2),
        ("sampling_param_frequency_penalty", 3.0),
        ("sampling_param_presence_penalty", math.nan),
        ("sampling_param_repetition_penalty", 0.0),
        ("sampling_param_repetition_penalty", math.nan),
        ("sampling_param_min_tokens", -1),
        ("sampling_param_min_tokens", 129),
        ("sampling_param_bad_words", [b""]),
        ("sampling_param_bad_words", [b"\xff"]),
        ("sampling_param_bad_words", [b"x"] * 65),
        ("embedding_bias_weights", [1.0]),
        ("guided_decoding_guide_type", b"poem"),
        ("guided_decoding_guide", b"[0-9]"),
        ("sampling_param_stop", [b""]),
        ("sampling_param_stop", [b"\xff"]),
        ("sampling_param_stop", [b"x"] * 65),
        ("streaming", []),
    ],
)
def test_refusal_names_the_tensor_what_was_expected_and_what_came(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{name}: expected .*, got .+"):
        parse(**{name: value})


def test_stop_needs_no_text() -> None:
    assert is_stop({"text_input": [b""], "stop": [True]})
    assert not is_stop({"text_input": [b"x"], "stop": [False]})
    assert not is_stop({"text_input": [b"x"]})


def test_the_time_in_which_pieces_gather_is_a_parameter() -> None:
    inputs = {"text_input": [b"hello"]}
    assert parse_request("1", inputs).stream_interval_s == 0
    assert parse_request("1", inputs, {"other": "x"}).stream_interval_s == 0
    for value in (40, 40.0):
        request = parse_request("1", inputs, {"stream_interval_ms": value})
        assert request.stream_interval_s == 0.04


@pytest.mark.parametrize("value", [-1, 1_001, math.nan, "40", True])
def test_a_wrong_interval_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^stream_interval_ms: expected a number from 0"):
        parse_request("1", {"text_input": [b"hello"]}, {"stream_interval_ms": value})
