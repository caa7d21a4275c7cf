"""Each optional input of TensorRT-LLM's models: passed, neutral, or refused by its name."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from echolm import contracts
from echolm.errors import InvalidRequestError
from echolm.primitives import Request, Sampling
from echolm.router.nvidia_inputs import NEUTRAL, PASSED, take_sampling
from echolm.router.validation import build_request, may_store
from echolm.settings import Limits, Settings
from echolm.triton.rows import read_each

SETTINGS = Settings(limits=Limits(max_stop_words=2, max_input_chars=50))
SPECS = {t.name: t for t in contracts.ECHOLM_INPUTS}
NUMPY = {"FP32": np.float32, "FP16": np.float16, "INT32": np.int32, "UINT64": np.uint64}
NUMPY |= {"BOOL": np.bool_, "UINT8": np.uint8}  # type: ignore[dict-item]


def asked(**inputs: Any) -> Request:
    """The request of one row of inputs, which come as Triton gives them."""
    arrays = {}
    for name, value in {"text_input": "hello", **inputs}.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value[None]
            continue
        cells = value if isinstance(value, list) else [value]
        if SPECS[name].datatype == "BYTES":
            array = np.array([cell.encode() for cell in cells], dtype=np.object_)
        else:
            array = np.array(cells, dtype=NUMPY[SPECS[name].datatype])
        arrays[name] = array.reshape(1, -1)
    [row] = read_each(arrays, contracts.ECHOLM_INPUTS)
    assert isinstance(row, dict)
    return build_request(SETTINGS, text=row.pop("text_input"), **row)


def test_every_input_has_one_rule() -> None:
    pair = {"embedding_bias_words", "embedding_bias_weights"}
    assert {t.name for t in contracts.SAMPLING_INPUTS} | {"seed"} == set(PASSED) | pair
    assert {t.name for t in contracts.NEUTRAL_INPUTS} == set(NEUTRAL)
    assert set(PASSED.values()) <= {field.name for field in fields(Sampling)}


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("repetition_penalty", 1.5, "repetition_penalty", 1.5),
        ("presence_penalty", 0.5, "presence_penalty", 0.5),
        ("frequency_penalty", -0.5, "frequency_penalty", -0.5),
        ("min_tokens", 3, "min_tokens", 3),
        ("min_length", 3, "min_tokens", 3),
        ("random_seed", 2**64 - 1, "seed", 2**64 - 1),
        ("bad_words", ["no", "never"], "bad_words", ("no", "never")),
        ("return_log_probs", True, "logprobs", True),
        ("guided_decoding_guide_type", "json", "guide_type", "json"),
    ],
)
def test_what_is_passed_is_a_field_of_the_sampling(
    name: str, value: Any, field: str, expected: Any
) -> None:
    request = asked(**{name: value})
    assert getattr(request.sampling, field) == expected
    others = {key: v for key, v in vars(request.sampling).items() if key != field}
    assert others == {key: v for key, v in vars(asked().sampling).items() if key != field}


def test_biased_words_and_their_weights_are_one_field() -> None:
    request = asked(embedding_bias_words=["yes", "no"], embedding_bias_weights=[2.0, -1.5])
    assert request.sampling.embedding_bias == (("yes", 2.0), ("no", -1.5))


def test_a_guide_comes_with_its_type() -> None:
    request = asked(guided_decoding_guide_type="regex", guided_decoding_guide="[0-9]+")
    assert (request.sampling.guide_type, request.sampling.guide) == ("regex", "[0-9]+")


NEUTRAL_VALUES = [
    ("repetition_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("min_tokens", 0),
    ("min_length", 0),
    ("bad_words", [""]),
    ("bad_words", []),
    ("bad_words", ["", "", ""][:2]),
    ("stop_words", [""]),
    ("stop_words", []),
    ("embedding_bias_words", []),
    ("embedding_bias_weights", []),
    ("return_log_probs", False),
    ("guided_decoding_guide_type", ""),
    ("guided_decoding_guide", ""),
    ("exclude_input_in_output", True),
    ("exclude_input_in_output", False),
    ("end_id", 2),
    ("pad_id", 2),
    ("pad_id", -1),
    ("beam_width", 1),
    ("num_return_sequences", 1),
    ("length_penalty", 1.0),
    ("length_penalty", 0.0),
    ("return_num_input_tokens", True),
    ("return_num_input_tokens", False),
    ("return_num_output_tokens", True),
    ("return_context_logits", False),
    ("return_generation_logits", False),
    ("return_perf_metrics", False),
    ("decoder_text_input", ""),
    ("image_input", np.zeros((0, 3, 1, 1), np.float16)),
    ("image_bytes_input", np.zeros((0, 1, 1, 1), np.uint8)),
    ("image_url_input", ""),
    ("video_bytes_input", np.zeros((0, 1, 1, 1), np.uint8)),
    ("prompt_embedding_table", np.zeros((0, 8), np.float16)),
    ("prompt_embedding_table", np.zeros((1, 0), np.float16)),
    ("prompt_table_extra_id", 0),
    ("prompt_vocab_size", 0),
    ("lora_task_id", 0),
    ("lora_weights", np.zeros((0, 0), np.float16)),
    ("lora_config", np.zeros((0, 3), np.int32)),
    ("num_draft_tokens", 0),
    ("use_draft_logits", False),
]


@pytest.mark.parametrize(("name", "value"), NEUTRAL_VALUES)
def test_a_neutral_value_changes_nothing(name: str, value: Any) -> None:
    assert asked(**{name: value}) == asked()


def test_every_input_has_a_neutral_value() -> None:
    seeds = {"random_seed"}  # there is none that changes nothing
    tested = {name for name, _ in NEUTRAL_VALUES} | seeds
    assert {t.name for t in (*contracts.SAMPLING_INPUTS, *contracts.NEUTRAL_INPUTS)} <= tested


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("end_id", -1, "end_id: expected a token's id, since .*, got -1"),
        ("beam_width", 4, "beam_width: expected 1, since no LLM here searches by beams, got 4"),
        ("beam_width", 0, "beam_width: expected 1"),
        ("num_return_sequences", 2, "num_return_sequences: expected 1, .* send more rows, got 2"),
        ("length_penalty", math.nan, "length_penalty: expected a finite number"),
        ("return_context_logits", True, "return_context_logits: expected False, since no LLM"),
        ("return_generation_logits", True, "return_generation_logits: expected False"),
        ("return_perf_metrics", True, "return_perf_metrics: expected False"),
        ("decoder_text_input", "x", "decoder_text_input: expected nothing, since .*, got x"),
        ("image_input", np.zeros((1, 3, 2, 2), np.float16), r"image_input: .* \[1, 3, 2, 2\]"),
        ("image_bytes_input", np.zeros((1, 2, 2, 3), np.uint8), "image_bytes_input: expected"),
        ("image_url_input", "http://x/y.png", "image_url_input: .*read text only, got http"),
        ("video_bytes_input", np.zeros((1, 1, 1, 3), np.uint8), "video_bytes_input: expected"),
        ("prompt_embedding_table", np.zeros((2, 8), np.float16), "prompt_embedding_table: .*shape"),
        ("prompt_table_extra_id", 7, "prompt_table_extra_id: expected 0"),
        ("prompt_vocab_size", 7, "prompt_vocab_size: expected 0"),
        ("lora_task_id", 7, "lora_task_id: expected 0, since adapters belong to one LLM"),
        ("lora_weights", np.zeros((1, 8), np.float16), "lora_weights: expected nothing"),
        ("lora_config", np.zeros((1, 3), np.int32), "lora_config: expected nothing"),
        ("num_draft_tokens", 4, "num_draft_tokens: expected 0"),
        ("use_draft_logits", True, "use_draft_logits: expected False"),
        ("repetition_penalty", 0.0, r"repetition_penalty: expected a number in \(0, 10\], got 0"),
        ("repetition_penalty", 10.5, "repetition_penalty: expected"),
        ("repetition_penalty", math.nan, "repetition_penalty: expected .*, got nan"),
        ("presence_penalty", 3.0, "presence_penalty: expected"),
        ("frequency_penalty", -3.0, "frequency_penalty: expected"),
        ("min_tokens", -1, r"min_tokens: expected 0 to max_tokens \(128\), got -1"),
        ("min_length", 129, r"min_tokens: expected 0 to max_tokens \(128\), got 129"),
        ("bad_words", ["a", "b", "c"], "bad_words: expected at most 2, got 3"),
        ("guided_decoding_guide_type", "poem", "guided_decoding_guide_type: .*'json', .* got poem"),
        ("guided_decoding_guide_type", "regex", "guided_decoding_guide: .*type is 'regex'"),
        ("guided_decoding_guide", "x", "guided_decoding_guide: expected a guide with"),
        ("embedding_bias_words", ["x"], r"embedding_bias_weights: expected as many as .* \(1\)"),
        ("embedding_bias_weights", [1.0], r"embedding_bias_weights: .* \(0\), got 1"),
    ],
)
def test_what_is_refused_is_refused_by_its_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        asked(**{name: value})


def test_more_that_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="embedding_bias_weights: expected finite"):
        asked(embedding_bias_words=["x"], embedding_bias_weights=[math.inf])
    with pytest.raises(InvalidRequestError, match="embedding_bias_weights: expected at most 2"):
        asked(embedding_bias_words=["x"] * 3, embedding_bias_weights=[1.0] * 3)
    with pytest.raises(InvalidRequestError, match="guided_decoding_guide: expected at most 50"):
        asked(guided_decoding_guide_type="regex", guided_decoding_guide="x" * 51)
    with pytest.raises(InvalidRequestError, match="guided_decoding_guide: expected a guide"):
        asked(guided_decoding_guide_type="json", guided_decoding_guide="{}")


def test_two_names_of_one_thing_must_agree() -> None:
    assert asked(min_tokens=2, min_length=2).sampling.min_tokens == 2
    assert asked(seed=5, random_seed=5).sampling.seed == 5
    with pytest.raises(InvalidRequestError, match="min_length: expected the value of min_tokens"):
        asked(min_tokens=2, min_length=3)
    with pytest.raises(InvalidRequestError, match=r"random_seed: .*; leave out random_seed"):
        asked(seed=5, random_seed=6)


def test_padding_of_a_batch_is_dropped() -> None:
    request = asked(
        bad_words=["no", ""],
        embedding_bias_words=["yes", ""],
        embedding_bias_weights=[1.0, 0.0],
    )
    assert request.sampling.bad_words == ("no",)
    assert request.sampling.embedding_bias == (("yes", 1.0),)


def test_a_row_loses_what_was_taken_of_it() -> None:
    row = {"min_length": 3, "beam_width": 1, "tenant": "a"}
    assert take_sampling(row) == {"min_tokens": 3, "embedding_bias": ()}
    assert row == {"tenant": "a"}


@pytest.mark.parametrize(
    ("inputs", "stored"),
    [
        ({"repetition_penalty": 1.2, "presence_penalty": 0.5}, True),
        ({"return_log_probs": True}, True),
        ({"min_tokens": 5}, False),
        ({"bad_words": ["no"]}, False),
        ({"guided_decoding_guide_type": "json"}, False),
        ({"embedding_bias_words": ["a"], "embedding_bias_weights": [1.0]}, False),
    ],
)
def test_an_answer_that_was_forced_does_not_become_an_example(
    inputs: dict[str, Any], stored: bool
) -> None:
    assert may_store(SETTINGS, asked(**inputs), "large_llm") is stored
