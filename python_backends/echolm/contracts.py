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
        name: the tensor's name.
        datatype: Triton's name of the type (``BYTES``, ``INT32`` …).
        dims: the shape without the batch dimension; -1 is variable.
        optional: whether a request may leave the input out.
        ragged: whether requests whose rows differ in length may share a dynamic batch.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    ragged: bool = False


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
    max_batch_size: int
    decoupled: bool = False


MAX_BATCH_SIZE = 64
"""Most rows in one request, and most requests in one dynamic batch, of the core models."""

MAX_EXAMPLES = 32
"""Most examples in one prompt, however ``retrieval.max_examples`` is set."""

PAD_ID = -1
"""Fills ``example_ids`` where the rows of a request have different numbers of examples."""


def _optional(name: str, datatype: str, *dims: int) -> Tensor:
    return Tensor(name, datatype, dims or (1,), optional=True)


TEXT_INPUT = Tensor("text_input", "BYTES", (1,))
SYSTEM_PROMPT = _optional("system_prompt", "BYTES")
TENANT = _optional("tenant", "BYTES")

SAMPLING_INPUTS = (
    _optional("max_tokens", "INT32"),
    _optional("temperature", "FP32"),
    _optional("top_p", "FP32"),
    _optional("top_k", "INT32"),
    _optional("seed", "UINT64"),
    _optional("stop_words", "BYTES", -1),
    _optional("stream", "BOOL"),
)

ECHOLM_INPUTS = (
    TEXT_INPUT,
    *SAMPLING_INPUTS,
    SYSTEM_PROMPT,
    TENANT,
    _optional("cache_control", "BYTES"),
    _optional("llm", "BYTES"),
)

ECHOLM_OUTPUTS = (
    Tensor("text_output", "BYTES", (1,)),
    Tensor("llm", "BYTES", (1,)),
    Tensor("example_ids", "INT64", (-1,)),
    Tensor("predicted_quality", "FP32", (1,)),
    Tensor("solicit_feedback", "BOOL", (1,)),
    Tensor("feedback_token", "BYTES", (1,)),
    Tensor("degraded", "BYTES", (1,)),
    Tensor("finish_reason", "BYTES", (1,)),
    Tensor("num_input_tokens", "INT32", (1,)),
    Tensor("num_output_tokens", "INT32", (1,)),
)

TOKENS = (Tensor("input_ids", "INT64", (-1,)), Tensor("attention_mask", "INT64", (-1,)))
EMBEDDING = Tensor("embedding", "FP32", (-1,))

RETRIEVED = (
    Tensor("example_ids", "INT64", (-1,)),
    Tensor("example_requests", "BYTES", (-1,)),
    Tensor("example_responses", "BYTES", (-1,)),
    Tensor("example_similarities", "FP32", (-1,)),
    Tensor("example_utilities", "FP32", (-1,)),
    Tensor("help_probability", "FP32", (1,)),
    Tensor("selection_record", "BYTES", (1,)),
    Tensor("retrieval_degraded", "BYTES", (1,)),
)
"""The selected examples in prompt order; the probability that any candidate helps (see
``Selection``); what a rating needs to know of the selection (text of a ``SelectionRecord``, empty
if there was nothing to select from); and why nothing was searched, if the store failed."""

_SEARCH_INPUTS = (SYSTEM_PROMPT, TENANT, _optional("search", "BOOL"))
"""Whose examples may be found, and whether to search at all; without ``search``, yes."""

ECHOLM = ModelContract("echolm", ECHOLM_INPUTS, ECHOLM_OUTPUTS, MAX_BATCH_SIZE)
ECHOLM_STREAM = ModelContract(
    "echolm_stream", ECHOLM_INPUTS, ECHOLM_OUTPUTS, MAX_BATCH_SIZE, decoupled=True
)
RETRIEVAL = ModelContract(
    "retrieval", (TEXT_INPUT, *_SEARCH_INPUTS), (EMBEDDING, *RETRIEVED), MAX_BATCH_SIZE
)
TOKENIZER = ModelContract("tokenizer", (TEXT_INPUT,), TOKENS, MAX_BATCH_SIZE)
EMBEDDER = ModelContract(
    "embedder", tuple(replace(t, ragged=True) for t in TOKENS), (EMBEDDING,), MAX_BATCH_SIZE
)
RETRIEVER = ModelContract(
    "retriever", (TEXT_INPUT, EMBEDDING, *_SEARCH_INPUTS), RETRIEVED, MAX_BATCH_SIZE
)
FEEDBACK = ModelContract(
    "feedback",
    (
        Tensor("feedback_token", "BYTES", (1,)),
        _optional("score", "FP32"),
        _optional("preferred_over", "BYTES"),
        TENANT,
    ),
    (Tensor("accepted", "BOOL", (1,)),),
    MAX_BATCH_SIZE,
)
EXAMPLE_MANAGER = ModelContract(
    "example_manager",
    (
        Tensor("request", "BYTES", (1,)),
        Tensor("response", "BYTES", (1,)),
        EMBEDDING,
        Tensor("tenant", "BYTES", (1,)),
        Tensor("system_prompt", "BYTES", (1,)),
        Tensor("llm", "BYTES", (1,)),
        Tensor("finish_reason", "BYTES", (1,)),
        Tensor("quality", "FP32", (1,)),
        Tensor("help_probability", "FP32", (1,)),
    ),
    (Tensor("admitted", "BOOL", (1,)), Tensor("reason", "BYTES", (1,))),
    MAX_BATCH_SIZE,
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

TOKEN_COUNTS = (
    Tensor("num_input_tokens", "INT32", (1,)),
    Tensor("num_output_tokens", "INT32", (1,)),
)
"""Outputs that our LLM model adds to NVIDIA's; a caller must do without them on other models."""

INFLIGHT_BATCHER_INPUTS = (
    Tensor("text_input", "BYTES", (1,)),
    Tensor("max_tokens", "INT32", (1,)),
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
"""Those inputs of TensorRT-LLM's C++ in-flight batching ensemble that the router sends; batched.
Not all releases have the token counts."""


def llm(name: str) -> ModelContract:
    """Contract of our own LLM model under the name it has in the model repository."""
    return ModelContract(
        name, LLM_API_INPUTS, (*LLM_API_OUTPUTS, *TOKEN_COUNTS), max_batch_size=0, decoupled=True
    )


CORE_MODELS = (
    ECHOLM,
    ECHOLM_STREAM,
    RETRIEVAL,
    TOKENIZER,
    RETRIEVER,
    FEEDBACK,
    EXAMPLE_MANAGER,
)
