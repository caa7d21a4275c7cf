"""The contract of TensorRT-LLM's ``llmapi`` model, which EchoLM's own LLM model speaks too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from echolm import contracts
from echolm.llm.triton_client import (
    Channels,
    ModelSignature,
    Reading,
    TritonLLMClient,
    sampling_values,
)
from echolm.primitives import Sampling

_ADDS_SPECIAL_TOKENS = "sampling_param_add_special_tokens"
_SAMPLING_PARAMS = frozenset(
    ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "bad_words")
)
"""Optional inputs of ``echolm`` that are parameters of the sampling here."""


class LLMAPIClient(TritonLLMClient):
    """Calls our own LLM model or NVIDIA's ``llmapi``.

    NVIDIA's model gives no token counts and repeats all of the text so far in each response of a
    stream. It passes stop words to a tokenizer in a form that the tokenizer does not take, so they
    are cut here. Its tokenizer puts BOS in front of every prompt, so the prompt's own is taken off.
    """

    contract = "llmapi"
    inputs: ClassVar = {tensor.name: tensor for tensor in contracts.ALL_LLM_API_INPUTS}

    def input_values(
        self, prompt: str, sampling: Sampling, streaming: bool, signature: ModelSignature
    ) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {
            "text_input": [prompt],
            "streaming": [streaming],
            "sampling_param_max_tokens": [sampling.max_tokens],
            "sampling_param_exclude_input_from_output": [True],
            "return_finish_reason": [True],
        }
        values |= {f"sampling_param_{k}": [v] for k, v in sampling_values(sampling).items()}
        if sampling.stop and _is_ours(signature):
            values["sampling_param_stop"] = sampling.stop
        if sampling.logprobs:
            values["return_cumulative_logprob"] = [True]
        if _ADDS_SPECIAL_TOKENS in signature.inputs:
            values[_ADDS_SPECIAL_TOKENS] = [False]
        else:
            values["text_input"] = [prompt.removeprefix(self.added_bos)]
        return values

    def tensor_of(self, name: str) -> str:
        return f"sampling_param_{name}" if name in _SAMPLING_PARAMS else name

    def takes_parameters(self, signature: ModelSignature) -> bool:
        return _is_ours(signature)

    def reading(self, sampling: Sampling, signature: ModelSignature) -> Reading:
        if _is_ours(signature):
            return Reading(logprobs=sampling.logprobs)
        return Reading(stop=sampling.stop, cumulative=True)


class RemoteLLM(LLMAPIClient):
    """Reaches an LLM of another Triton by way of this server's model ``remote_llm``.

    The front door calls models of its own server only.
    """

    inputs: ClassVar = {tensor.name: tensor for tensor in contracts.REMOTE_LLM.inputs}

    def __init__(self, channels: Channels, url: str, llm: str, admin_key: str = "") -> None:
        """
        Args:
            url, admin_key: of this server.
            llm: name of a configured LLM.
        """
        super().__init__(channels, url, contracts.REMOTE_LLM.name, admin_key=admin_key)
        self._llm = llm

    def input_values(
        self, prompt: str, sampling: Sampling, streaming: bool, signature: ModelSignature
    ) -> dict[str, Sequence[Any]]:
        values = super().input_values(prompt, sampling, streaming, signature)
        if sampling.response_format:
            values = {**values, "response_format": [sampling.response_format]}
        return {**values, "llm": [self._llm]}


def _is_ours(signature: ModelSignature) -> bool:
    return contracts.TOKEN_COUNTS[0].name in signature.outputs
