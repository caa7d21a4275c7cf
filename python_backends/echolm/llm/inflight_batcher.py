"""The contract of the ensemble around TensorRT-LLM's C++ in-flight batching backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from echolm import contracts
from echolm.llm.triton_client import Answer, ModelFacts, Outputs, TritonLLM, read_int, sampled
from echolm.primitives import Sampling


class InflightBatcherClient(TritonLLM):
    """The ensemble of TensorRT-LLM's C++ backend, ``inflight_batcher_llm``.

    It gives no reason for an answer's end, so that follows from the token counts where the
    release tells them; and its answers end with the stop word, which is cut here.
    """

    contract = "inflight_batcher"
    inputs: ClassVar = {tensor.name: tensor for tensor in contracts.INFLIGHT_BATCHER_INPUTS}

    def _values(
        self, prompt: str, sampling: Sampling, streaming: bool, facts: ModelFacts
    ) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {
            "text_input": [prompt],
            "max_tokens": [sampling.max_tokens],
            "stream": [streaming],
            "beam_width": [1],
            **{key: [value] for key, value in sampled(sampling).items()},
            "exclude_input_in_output": [True],
            "return_num_input_tokens": [True],
            "return_num_output_tokens": [True],
        }
        if sampling.stop:
            values["stop_words"] = sampling.stop
        return values

    def _answer(self, sampling: Sampling, facts: ModelFacts) -> Answer:
        return _InflightBatcherAnswer(sampling.max_tokens, sampling.stop, cumulative=False)


class _InflightBatcherAnswer(Answer):
    def _note(self, outputs: Outputs) -> None:
        if "num_input_tokens" in outputs:
            self.num_input_tokens = read_int(outputs["num_input_tokens"])
        if "num_output_tokens" in outputs:  # of this response
            self.num_output_tokens = max(self.num_output_tokens, 0) + read_int(
                outputs["num_output_tokens"]
            )

    def end(self) -> str:
        rest = super().end()
        if not self.finish_reason and self.num_output_tokens >= 0:
            full = self.num_output_tokens >= self._max_tokens
            self.finish_reason = "length" if full else "stop"
        return rest
