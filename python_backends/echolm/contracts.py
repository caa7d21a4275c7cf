"""Names, types and shapes of every tensor in the model repository, in one place.

``scripts/generate_configs.py`` writes these tables into the ``config.pbtxt`` files and
``tests/contract`` compares the two, so a tensor is renamed here or nowhere. The public tensors
of ``echolm`` keep the names of Triton's TensorRT-LLM ensemble; the LLM models speak
TensorRT-LLM's LLM-API contract (NVIDIA/TensorRT-LLM, ``triton_backend/all_models``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model.

    Attributes:
        datatype: Triton's name of the type (``BYTES``, ``INT32`` …).
        dims: the shape without the batch dimension; -1 is variable.
        optional: whether a request may leave the input out.
        ragged: whether requests whose rows differ in length may share a dynamic batch.
    """

    name: str
    datatype: str
    dims: tuple[int, ...] = (1,)
    optional: bool = False
    ragged: bool = False


MAX_BATCH_SIZE = 64
"""Most rows in one request, and most requests in one dynamic batch, of the core models."""

MAX_EXAMPLES = 32
"""Most examples in one prompt, however ``retrieval.max_examples`` is set."""

PAD_ID = -1
"""Fills ``example_ids`` where the rows of a request have different numbers of examples."""


@dataclass(frozen=True)
class ModelContract:
    """Tensors and scheduling of one model.

    Attributes:
        max_batch_size: as in ``config.pbtxt``; 0 means that tensors carry no batch dimension.
        decoupled: whether one request may get any number of responses.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = MAX_BATCH_SIZE
    decoupled: bool = False


def _optional(name: str, datatype: str, *dims: int) -> Tensor:
    return Tensor(name, datatype, dims or (1,), optional=True)


_TEXT_INPUT = Tensor("text_input", "BYTES")
_SYSTEM_PROMPT = _optional("system_prompt", "BYTES")
_TENANT = _optional("tenant", "BYTES")
_EXAMPLE_IDS = Tensor("example_ids", "INT64", (-1,))

TOKEN_COUNTS = (Tensor("num_input_tokens", "INT32"), Tensor("num_output_tokens", "INT32"))
"""Outputs that our LLM model adds to NVIDIA's; a caller must do without them on other models."""

ECHOLM_INPUTS = (
    _TEXT_INPUT,
    _optional("max_tokens", "INT32"),
    _optional("temperature", "FP32"),
    _optional("top_p", "FP32"),
    _optional("top_k", "INT32"),
    _optional("seed", "UINT64"),
    _optional("stop_words", "BYTES", -1),
    _optional("stream", "BOOL"),
    _SYSTEM_PROMPT,
    _TENANT,
    _optional("cache_control", "BYTES"),
    _optional("llm", "BYTES"),
)

ECHOLM_OUTPUTS = (
    Tensor("text_output", "BYTES"),
    Tensor("llm", "BYTES"),
    _EXAMPLE_IDS,
    Tensor("predicted_quality", "FP32"),
    Tensor("solicit_feedback", "BOOL"),
    Tensor("feedback_token", "BYTES"),
    Tensor("degraded", "BYTES"),
    Tensor("finish_reason", "BYTES"),
    *TOKEN_COUNTS,
)

TOKENS = (Tensor("input_ids", "INT64", (-1,)), Tensor("attention_mask", "INT64", (-1,)))
EMBEDDING = Tensor("embedding", "FP32", (-1,))

RETRIEVED = (
    _EXAMPLE_IDS,
    Tensor("example_requests", "BYTES", (-1,)),
    Tensor("example_responses", "BYTES", (-1,)),
    Tensor("example_similarities", "FP32", (-1,)),
    Tensor("example_utilities", "FP32", (-1,)),
    Tensor("example_agreements", "FP32", (-1,)),
    Tensor("help_probability", "FP32"),
    Tensor("selection_record", "BYTES"),
    Tensor("retrieval_degraded", "BYTES"),
    Tensor("reusable_id", "INT64"),
    Tensor("reusable_response", "BYTES"),
    Tensor("reusable_exact", "BOOL"),
    Tensor("reusable_features", "FP32", (-1,)),
)
"""The selected examples in prompt order; the probability that any candidate helps (see
``Selection``); what a rating needs to know of the selection (text of a ``SelectionRecord``, empty
if there was nothing to select from); why nothing was searched, if the store failed; and the stored
answer that is most probably right as it is (``PAD_ID`` if there is none), see ``Reusable``."""

_SEARCH_INPUTS = (
    _SYSTEM_PROMPT,
    _TENANT,
    _optional("search", "BOOL"),
    _optional("answer_key", "BYTES"),
    _optional("learn", "BOOL"),
)
"""Whose examples may be found; whether to search at all; under which key a stored answer must have
been given to be reusable (without one, none is); and whether the request may count in the
statistics of requests; without ``search`` or ``learn``, yes."""

ECHOLM = ModelContract("echolm", ECHOLM_INPUTS, ECHOLM_OUTPUTS)
ECHOLM_STREAM = ModelContract("echolm_stream", ECHOLM_INPUTS, ECHOLM_OUTPUTS, decoupled=True)
RETRIEVAL = ModelContract("retrieval", (_TEXT_INPUT, *_SEARCH_INPUTS), (EMBEDDING, *RETRIEVED))
TOKENIZER = ModelContract("tokenizer", (_TEXT_INPUT,), TOKENS)
EMBEDDER = ModelContract("embedder", tuple(replace(t, ragged=True) for t in TOKENS), (EMBEDDING,))
RETRIEVER = ModelContract("retriever", (_TEXT_INPUT, EMBEDDING, *_SEARCH_INPUTS), RETRIEVED)
FEEDBACK = ModelContract(
    "feedback",
    (
        Tensor("feedback_token", "BYTES"),
        _optional("score", "FP32"),
        _optional("preferred_over", "BYTES"),
        _TENANT,
    ),
    (Tensor("accepted", "BOOL"),),
)
EXAMPLE_MANAGER = ModelContract(
    "example_manager",
    (
        Tensor("request", "BYTES"),
        Tensor("response", "BYTES"),
        EMBEDDING,
        Tensor("tenant", "BYTES"),
        Tensor("system_prompt", "BYTES"),
        Tensor("llm", "BYTES"),
        Tensor("finish_reason", "BYTES"),
        Tensor("quality", "FP32"),
        Tensor("help_probability", "FP32"),
        _optional("answer_key", "BYTES"),
    ),
    (Tensor("admitted", "BOOL"), Tensor("reason", "BYTES")),
)

LLM_API_INPUTS = (
    Tensor("text_input", "BYTES", (-1,)),
    _optional("streaming", "BOOL"),
    _optional("sampling_param_best_of", "INT32"),
    _optional("sampling_param_temperature", "FP32"),
    _optional("sampling_param_top_k", "INT32"),
    _optional("sampling_param_top_p", "FP32"),
    _optional("sampling_param_frequency_penalty", "FP32"),
    _optional("sampling_param_presence_penalty", "FP32"),
    _optional("sampling_param_max_tokens", "INT32"),
    _optional("sampling_param_stop", "BYTES", -1),
    _optional("sampling_param_seed", "UINT64"),
    _optional("sampling_param_exclude_input_from_output", "BOOL"),
    _optional("return_finish_reason", "BOOL"),
    _optional("return_stop_reason", "BOOL"),
    _optional("return_cumulative_logprob", "BOOL"),
    _optional("stop", "BOOL"),
)
"""Those ``llmapi`` inputs that our LLM model takes; ``stop`` cancels the request of that id."""

LLM_API_OUTPUTS = (
    Tensor("text_output", "BYTES", (-1,)),
    Tensor("finish_reason", "BYTES", (-1,)),
    Tensor("stop_reason", "BYTES", (-1,)),
    Tensor("cumulative_logprob", "FP32", (-1,)),
)

STREAM_INTERVAL_MS = "stream_interval_ms"
"""Parameter of a request that our LLM model takes besides: a number, the milliseconds in which the
pieces of its stream gather; without it each goes out by itself."""

INFLIGHT_BATCHER_INPUTS = (
    Tensor("text_input", "BYTES"),
    Tensor("max_tokens", "INT32"),
    _optional("stop_words", "BYTES", -1),
    _optional("exclude_input_in_output", "BOOL"),
    _optional("top_k", "INT32"),
    _optional("top_p", "FP32"),
    _optional("temperature", "FP32"),
    _optional("seed", "UINT64"),
    _optional("return_num_input_tokens", "BOOL"),
    _optional("return_num_output_tokens", "BOOL"),
    _optional("beam_width", "INT32"),
    _optional("stream", "BOOL"),
)
"""Those inputs of TensorRT-LLM's C++ in-flight batching ensemble that the router sends; batched."""


def llm(name: str) -> ModelContract:
    """Contract of our own LLM model under the name it has in the model repository."""
    return ModelContract(
        name, LLM_API_INPUTS, (*LLM_API_OUTPUTS, *TOKEN_COUNTS), max_batch_size=0, decoupled=True
    )


CORE_MODELS = (ECHOLM, ECHOLM_STREAM, RETRIEVAL, TOKENIZER, RETRIEVER, FEEDBACK, EXAMPLE_MANAGER)
