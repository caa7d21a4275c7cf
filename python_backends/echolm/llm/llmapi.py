"""The contract of TensorRT-LLM's ``llmapi`` model, which EchoLM's own LLM model speaks too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from echolm import contracts
from echolm.llm.triton_client import (
    Answer,
    ModelFacts,
    Outputs,
    TritonLLM,
    read_int,
    read_text,
    sampled,
)
from echolm.primitives import Sampling


class LLMAPIClient(TritonLLM):
    """TensorRT-LLM's LLM-API contract: our own LLM model, and NVIDIA's ``llmapi``.

    NVIDIA's tells no token counts, gives all of the text so far in each response of a stream, and
    hands stop words to a tokenizer that does not take them as they come from Triton; so those are
    cut here.
    """

    contract = "llmapi"
    inputs: ClassVar = {tensor.name: tensor for tensor in contracts.LLM_API_INPUTS}

    def _values(
        self, prompt: str, sampling: Sampling, streaming: bool, facts: ModelFacts
    ) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {
            "text_input": [prompt],
            "streaming": [streaming],
            "sampling_param_max_tokens": [sampling.max_tokens],
            **{f"sampling_param_{key}": [value] for key, value in sampled(sampling).items()},
            "sampling_param_exclude_input_from_output": [True],
            "return_finish_reason": [True],
        }
        if sampling.stop and self._is_ours(facts):
            values["sampling_param_stop"] = sampling.stop
        return values

    def _answer(self, sampling: Sampling, facts: ModelFacts) -> Answer:
        ours = self._is_ours(facts)
        stop = () if ours else sampling.stop
        return _LLMAPIAnswer(sampling.max_tokens, stop, cumulative=not ours)

    @staticmethod
    def _is_ours(facts: ModelFacts) -> bool:
        return contracts.TOKEN_COUNTS[0].name in facts.outputs


class _LLMAPIAnswer(Answer):
    def _note(self, outputs: Outputs) -> None:
        if "finish_reason" in outputs:
            reason = read_text(outputs["finish_reason"])
            # NVIDIA's gives Python's None as text while there is none.
            self.finish_reason = reason if reason not in ("", "None") else self.finish_reason
        if "num_input_tokens" in outputs:
            self.num_input_tokens = read_int(outputs["num_input_tokens"])
        if "num_output_tokens" in outputs:
            self.num_output_tokens = read_int(outputs["num_output_tokens"])
