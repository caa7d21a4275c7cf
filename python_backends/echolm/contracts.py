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
_ASKED = (_optional("text_input", "BYTES"), _optional("messages", "BYTES"))
"""A request has one of them: a text, or a conversation as in OpenAI's chat API, as JSON."""
_SYSTEM_PROMPT = _optional("system_prompt", "BYTES")
_TENANT = _optional("tenant", "BYTES")
_EXAMPLE_IDS = Tensor("example_ids", "INT64", (-1,))

TOKEN_COUNTS = (Tensor("num_input_tokens", "INT32"), Tensor("num_output_tokens", "INT32"))
"""Outputs that our LLM model adds to NVIDIA's; a caller must do without them on other models."""

_OWN_INPUTS = (
    *_ASKED,
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
    _optional("cost_weight", "FP32"),
)

OPENAI_INPUTS = (
    _optional("tools", "BYTES"),
    _optional("tool_choice", "BYTES"),
    _optional("response_format", "BYTES"),
    _optional("logprobs", "INT32"),
)
"""What OpenAI's API asks for beyond text, in its JSON, and the number of its ``top_logprobs``; they
are passed to LLMs that can take them."""

_PASSED_INPUTS = (
    _optional("repetition_penalty", "FP32"),
    _optional("presence_penalty", "FP32"),
    _optional("frequency_penalty", "FP32"),
    _optional("min_tokens", "INT32"),
    _optional("bad_words", "BYTES", -1),
    _optional("embedding_bias_words", "BYTES", -1),
    _optional("embedding_bias_weights", "FP32", -1),
    _optional("guided_decoding_guide_type", "BYTES"),
    _optional("guided_decoding_guide", "BYTES"),
    _optional("return_log_probs", "BOOL"),
)
"""Inputs of TensorRT-LLM's ensemble that ``echolm`` passes to LLMs under the same names."""

SAMPLING_INPUTS = (
    *_PASSED_INPUTS,
    _optional("min_length", "INT32"),
    _optional("random_seed", "UINT64"),
)
"""Inputs of TensorRT-LLM's ensemble that are passed to LLMs that can take them. ``min_length`` and
``random_seed`` are what ``min_tokens`` and ``seed`` were called in earlier releases."""

NEUTRAL_INPUTS = (
    _optional("exclude_input_in_output", "BOOL"),
    _optional("end_id", "INT32"),
    _optional("pad_id", "INT32"),
    _optional("beam_width", "INT32"),
    _optional("num_return_sequences", "INT32"),
    _optional("length_penalty", "FP32"),
    _optional("return_num_input_tokens", "BOOL"),
    _optional("return_num_output_tokens", "BOOL"),
    _optional("return_context_logits", "BOOL"),
    _optional("return_generation_logits", "BOOL"),
    _optional("return_perf_metrics", "BOOL"),
    _optional("decoder_text_input", "BYTES"),
    _optional("image_input", "FP16", -1, 3, -1, -1),
    _optional("image_bytes_input", "UINT8", -1, -1, -1, -1),
    _optional("image_url_input", "BYTES"),
    _optional("video_bytes_input", "UINT8", -1, -1, -1, -1),
    _optional("prompt_embedding_table", "FP16", -1, -1),
    _optional("prompt_table_extra_id", "UINT64"),
    _optional("prompt_vocab_size", "INT32"),
    _optional("lora_task_id", "UINT64"),
    _optional("lora_weights", "FP16", -1, -1),
    _optional("lora_config", "INT32", -1, 3),
    _optional("num_draft_tokens", "INT32"),
    _optional("use_draft_logits", "BOOL"),
)
"""Inputs of TensorRT-LLM's ``ensemble`` and ``tensorrt_llm_bls`` that are taken with a value that
changes nothing, and refused with another (:mod:`echolm.router.nvidia_inputs`)."""

OPENAI_OUTPUTS = (Tensor("tool_calls", "BYTES"), Tensor("logprobs", "BYTES"))
"""JSON arrays as in OpenAI's API, for requests with ``tools`` or ``logprobs``. Each response of a
stream has what is new: deltas of the calls, and the tokens since the one before."""

ECHOLM_INPUTS = (*_OWN_INPUTS, *OPENAI_INPUTS, *SAMPLING_INPUTS, *NEUTRAL_INPUTS)

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
    *OPENAI_OUTPUTS,
    Tensor("cum_log_probs", "FP32", (-1,)),
    Tensor("output_log_probs", "FP32", (-1, -1)),
)
"""The last two as in TensorRT-LLM's ensemble, for requests with ``return_log_probs``: [n, 1] and
[n, 1, tokens], since there is one sequence for each row."""

TOKENS = (Tensor("input_ids", "INT64", (-1,)), Tensor("attention_mask", "INT64", (-1,)))
EMBEDDING = Tensor("embedding", "FP32", (-1,))

RETRIEVED = Tensor("retrieved", "BYTES")
"""What the retriever has found for a request, packed by :mod:`echolm.retrieval.packed`: it would
pass the process border as a dozen tensors else."""

_RETRIEVAL_DEGRADED = _optional("retrieval_degraded", "BYTES")
"""Why nothing was retrieved, from a caller that could not get ``RETRIEVED``."""

REPORT = _optional("report", "BYTES")
"""What has become of a decision, packed by :mod:`echolm.router.packed`; a request to the router has
either this or the inputs of ``echolm``."""

PLAN = Tensor("plan", "BYTES")
"""What the front door does with a request, packed by :mod:`echolm.router.packed`: it calls an LLM,
gives a stored answer or refuses the request. An ensemble's output must not have the name of an
input: Triton (2.51) then gives an empty tensor without an error."""


def _all_optional(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(replace(tensor, optional=True) for tensor in tensors)


ECHOLM = ModelContract("echolm", ECHOLM_INPUTS, ECHOLM_OUTPUTS)
ECHOLM_STREAM = ModelContract("echolm_stream", ECHOLM_INPUTS, ECHOLM_OUTPUTS, decoupled=True)
TOKENIZER = ModelContract("tokenizer", _ASKED, TOKENS)
EMBEDDER = ModelContract("embedder", tuple(replace(t, ragged=True) for t in TOKENS), (EMBEDDING,))
RETRIEVER = ModelContract(
    "retriever", (*_OWN_INPUTS, *OPENAI_INPUTS, *SAMPLING_INPUTS, EMBEDDING), (RETRIEVED,)
)
ROUTER = ModelContract(
    "router",
    _all_optional((*ECHOLM_INPUTS, EMBEDDING, RETRIEVED, _RETRIEVAL_DEGRADED, REPORT)),
    (PLAN,),
)
SELECTION = ModelContract("selection", ECHOLM_INPUTS, (PLAN,))
TEXT_EMBEDDING = ModelContract("text_embedding", (_TEXT_INPUT,), (EMBEDDING,))
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

LLM_API_EXTENSIONS = (
    _optional("sampling_param_repetition_penalty", "FP32"),
    _optional("sampling_param_min_tokens", "INT32"),
    _optional("sampling_param_add_special_tokens", "BOOL"),
    _optional("return_log_probs", "BOOL"),
)
"""Inputs that our LLM model adds to NVIDIA's, over each engine, by the names of the library's
parameters. NVIDIA's lets the tokenizer put its special tokens around every prompt."""

ENGINE_EXTENSIONS = {
    "vllm": (
        _optional("sampling_param_bad_words", "BYTES", -1),
        _optional("guided_decoding_guide_type", "BYTES"),
        _optional("guided_decoding_guide", "BYTES"),
        OPENAI_INPUTS[-1],
    ),
    "tensorrt_llm": (_optional("sampling_param_bad_words", "BYTES", -1),),
}
"""Inputs that our LLM model adds over those engines that can do what they ask for, by the name of
the engine. A model takes what its ``config.pbtxt`` declares."""

_ENGINE_OUTPUTS = {"vllm": OPENAI_OUTPUTS[-1:]}
"""Outputs that our LLM model adds over those engines."""

LLM_API_OUTPUTS = (
    Tensor("text_output", "BYTES", (-1,)),
    Tensor("finish_reason", "BYTES", (-1,)),
    Tensor("stop_reason", "BYTES", (-1,)),
    Tensor("cumulative_logprob", "FP32", (-1,)),
)

LOG_PROBS = (Tensor("cum_log_probs", "FP32"), Tensor("output_log_probs", "FP32", (-1,)))
"""Outputs that our LLM model adds for requests with ``return_log_probs``: the log probability of
all tokens so far, and those of the tokens that a response brings."""

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
    *_PASSED_INPUTS,
    _optional("return_num_input_tokens", "BOOL"),
    _optional("return_num_output_tokens", "BOOL"),
    _optional("beam_width", "INT32"),
    _optional("stream", "BOOL"),
)
"""Those inputs of TensorRT-LLM's C++ in-flight batching ensemble that the router sends; batched."""


def llm(name: str, engine: str = "") -> ModelContract:
    """Contract of our own LLM model under the name it has in the model repository.

    Args:
        engine: which one runs it.
    """
    inputs = (*LLM_API_INPUTS, *LLM_API_EXTENSIONS, *ENGINE_EXTENSIONS.get(engine, ()))
    added = _ENGINE_OUTPUTS.get(engine, ())
    outputs = (*LLM_API_OUTPUTS, *LOG_PROBS, *TOKEN_COUNTS, *added)
    return ModelContract(name, inputs, outputs, max_batch_size=0, decoupled=True)


ALL_LLM_API_INPUTS = tuple(
    {t.name: t for engine in ENGINE_EXTENSIONS for t in llm("", engine).inputs}.values()
)
"""Whatever our LLM model takes over any engine."""

REMOTE_LLM = replace(
    llm("remote_llm"),
    inputs=(
        *ALL_LLM_API_INPUTS,
        *OPENAI_INPUTS[:-1],
        _optional("embedding_bias_words", "BYTES", -1),
        _optional("embedding_bias_weights", "FP32", -1),
        Tensor("llm", "BYTES"),
    ),
    outputs=(*llm("remote_llm").outputs, *OPENAI_OUTPUTS),
)
"""What LLMs of all contracts take, by our LLM model's names, and the name of a configured LLM that
another Triton serves."""

CORE_MODELS = (
    ECHOLM,
    ECHOLM_STREAM,
    SELECTION,
    TOKENIZER,
    RETRIEVER,
    ROUTER,
    TEXT_EMBEDDING,
    REMOTE_LLM,
    FEEDBACK,
    EXAMPLE_MANAGER,
)
