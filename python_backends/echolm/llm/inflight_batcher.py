"""The contract of the ensemble around TensorRT-LLM's C++ in-flight batching backend."""

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
    sampling_values,
)
from echolm.primitives import Sampling


class InflightBatcherClient(TritonLLMClient):
    """The ensemble of TensorRT-LLM's C++ backend, ``inflight_batcher_llm``.

    It does not say why an answer ended; that follows from the token counts, if the release tells
    them. Its answers end with the stop word, which is cut here.
    """

    contract = "inflight_batcher"
    inputs: ClassVar = {tensor.name: tensor for tensor in contracts.INFLIGHT_BATCHER_INPUTS}

    def input_values(
        self, prompt: str, sampling: Sampling, streaming: bool, signature: ModelSignature
    ) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {
            "text_input": [prompt],
            "max_tokens": [sampling.max_tokens],
            "stream": [streaming],
            "beam_width": [1],
            "exclude_input_in_output": [True],
            "return_num_input_tokens": [True],
            "return_num_output_tokens": [True],
        }
        values |= {k: [v] for k, v in sampling_values(sampling).items()}
        if sampling.stop:
            values["stop_words"] = sampling.stop
        return values

    def new_reader(self, sampling: Sampling, signature: ModelSignature) -> ResponseReader:
        return _InflightBatcherReader(sampling.max_tokens, sampling.stop, cumulative=False)


class _InflightBatcherReader(ResponseReader):
    def read_outputs(self, outputs: RawOutputs) -> None:
        if "num_output_tokens" in outputs:  # counts this response only
            new_tokens = read_int(outputs["num_output_tokens"])
            self.num_output_tokens = max(self.num_output_tokens, 0) + new_tokens

    def end(self) -> str:
        rest = super().end()
        if not self.finish_reason and self.num_output_tokens >= 0:
            full = self.num_output_tokens >= self.max_tokens
            self.finish_reason = "length" if full else "stop"
        return rest
