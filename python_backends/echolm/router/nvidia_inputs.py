"""What becomes of the optional inputs of TensorRT-LLM's Triton models, by one table.

Clients of NVIDIA's models ``ensemble`` and ``tensorrt_llm_bls`` may send more inputs than any LLM
takes. Each is one of

- *passed*: a field of :class:`~echolm.primitives.Sampling`, which goes to LLMs that can take it;
  where none can, the router refuses the request by the input's name;
- *neutral*: taken with a value that changes nothing, refused by its name with any other.

The tensors are in ``contracts.SAMPLING_INPUTS`` and ``contracts.NEUTRAL_INPUTS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from echolm.errors import InvalidRequestError

PASSED: Mapping[str, str] = {
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_tokens": "min_tokens",
    "min_length": "min_tokens",
    "seed": "seed",
    "random_seed": "seed",
    "bad_words": "bad_words",
    "guided_decoding_guide_type": "guide_type",
    "guided_decoding_guide": "guide",
    "return_log_probs": "logprobs",
}
"""The field of ``Sampling`` of each input that has one of its own. ``embedding_bias_words`` and
``embedding_bias_weights`` make one together."""

NAMES: Mapping[str, str] = {
    "stop": "stop_words",
    "embedding_bias": "embedding_bias_weights",
    "guide_type": "guided_decoding_guide_type",
    "guide": "guided_decoding_guide",
    "logprobs": "return_log_probs",
    "top_logprobs": "logprobs",
}
"""What callers call a field of ``Sampling``, where that is not the field's name."""


@dataclass(frozen=True)
class Neutral:
    """The values with which an input changes nothing.

    Attributes:
        is_neutral: of a value as :func:`echolm.triton.rows.read_each` gives it.
        expected: those values in words, and why no others.
    """

    is_neutral: Callable[[Any], bool]
    expected: str


def _only(value: Any, why: str) -> Neutral:
    return Neutral(lambda got: bool(got == value), f"{value!r}, since {why}")


def _any(why: str) -> Neutral:
    return Neutral(lambda got: True, f"any value, since {why}")


def _nothing(why: str) -> Neutral:
    return Neutral(lambda got: len(got) == 0 or np.size(got) == 0, f"nothing, since {why}")


_TEXT_ONLY = "all LLMs here read text only"
_LORA = "adapters belong to one LLM; serve an LLM with its adapter as one of its own"
_PROMPT_TABLE = "virtual tokens belong to one LLM, and any may answer"
_LOGITS = "no LLM here gives its logits"
_DRAFTS = "an LLM's drafts are its engine's own affair"
_COUNTED = "tokens are always counted"

NEUTRAL: Mapping[str, Neutral] = {
    "exclude_input_in_output": _any("an answer never repeats its input"),
    "pad_id": _any("nothing is padded"),
    "end_id": Neutral(
        lambda got: bool(got >= 0), "a token's id, since each LLM ends with its own end-of-text"
    ),
    "beam_width": _only(1, "no LLM here searches by beams"),
    "num_return_sequences": _only(1, "a row gets one answer; send more rows"),
    "length_penalty": Neutral(math.isfinite, "a finite number; it acts on beams only"),
    "return_num_input_tokens": _any(_COUNTED),
    "return_num_output_tokens": _any(_COUNTED),
    "return_context_logits": _only(False, _LOGITS),
    "return_generation_logits": _only(False, _LOGITS),
    "return_perf_metrics": _only(False, "they are on the metrics page"),
    "decoder_text_input": _nothing("no LLM here has an encoder apart from its decoder"),
    "image_input": _nothing(_TEXT_ONLY),
    "image_bytes_input": _nothing(_TEXT_ONLY),
    "image_url_input": _nothing(_TEXT_ONLY),
    "video_bytes_input": _nothing(_TEXT_ONLY),
    "prompt_embedding_table": _nothing(_PROMPT_TABLE),
    "prompt_table_extra_id": _only(0, _PROMPT_TABLE),
    "prompt_vocab_size": _only(0, _PROMPT_TABLE),
    "lora_task_id": _only(0, _LORA),
    "lora_weights": _nothing(_LORA),
    "lora_config": _nothing(_LORA),
    "num_draft_tokens": _only(0, _DRAFTS),
    "use_draft_logits": _only(False, _DRAFTS),
}


def take_sampling(row: dict[str, Any]) -> dict[str, Any]:
    """Take the inputs of the table out of a row of inputs; gives fields of ``Sampling``.

    Raises:
        InvalidRequestError: names an input that has a value which is not neutral, or that
            contradicts another.
    """
    for name in [name for name in NEUTRAL if name in row]:
        got, rule = row.pop(name), NEUTRAL[name]
        if not rule.is_neutral(got):
            shown = f"shape {list(got.shape)}" if isinstance(got, np.ndarray) else got
            raise InvalidRequestError.of(name, rule.expected, shown)
    sampling: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for name, field in PASSED.items():
        if (value := row.pop(name, None)) is None:
            continue
        if field in sampling and sampling[field] != value:
            other = given_as[field]
            expected = f"the value of {other}, which it is another name of"
            raise InvalidRequestError.of(name, expected, value, f"leave out {name}")
        sampling[field] = tuple(value) if isinstance(value, list) else value
        given_as[field] = name
    words, weights = row.pop("embedding_bias_words", ()), row.pop("embedding_bias_weights", ())
    if len(words) != len(weights):
        expected = f"as many as embedding_bias_words ({len(words)})"
        raise InvalidRequestError.of("embedding_bias_weights", expected, len(weights))
    pairs = zip(words, map(float, weights), strict=True)
    sampling["embedding_bias"] = tuple(pair for pair in pairs if pair[1] != 0.0)
    return sampling
