"""The contract of TensorRT-LLM's ``llmapi`` model, which EchoLM's own LLM model speaks too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from echolm import contracts
from echolm.llm.triton_client import (
    ModelSignature,
    RawOutputs,
    ResponseReader,
    TritonLLMClient,
    read_int,
    read_text,
    sampling_values,
)
from echolm.primitives import Sampling


class LLMAPIClient(TritonLLMClient):
    """Calls our own LLM model or NVIDIA's ``llmapi``.

    NVIDIA's model gives no token counts and repeats all of the text so far in each response of a
    stream. It passes stop words to a tokenizer in a form that the tokenizer does not take, so they
    are cut here.
    """

    contract = "llmapi"
    inputs: ClassVar = {tensor.name: tensor for tensor in contracts.LLM_API_INPUTS}

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
        return values

    def can_gather(self, signature: ModelSignature) -> bool:
        return _is_ours(signature)

    def new_reader(self, sampling: Sampling, signature: ModelSignature) -> ResponseReader:
        ours = _is_ours(signature)
        stop = () if ours else sampling.stop
        return _LLMAPIReader(sampling.max_tokens, stop, cumulative=not ours)


def _is_ours(signature: ModelSignature) -> bool:
    return contracts.TOKEN_COUNTS[0].name in signature.outputs


class _LLMAPIReader(ResponseReader):
    def read_outputs(self, outputs: RawOutputs) -> None:
        reason = read_text(outputs.get("finish_reason", b""))
        # NVIDIA's model sends Python's None as text as long as there is no reason.
        if reason not in ("", "None"):
            self.finish_reason = reason
        if "num_output_tokens" in outputs:
            self.num_output_tokens = read_int(outputs["num_output_tokens"])
