"""The contract of the ensemble around TensorRT-LLM's C++ in-flight batching backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from echolm import contracts
from echolm.llm.triton_client import (
    ModelSignature,
    Reading,
    TritonLLMClient,
    sampling_values,
)
from echolm.primitives import Sampling


class InflightBatcherClient(TritonLLMClient):
    """The ensemble of TensorRT-LLM's C++ backend, ``inflight_batcher_llm``.

    It does not say why an answer ended; that follows from the token counts, if the release tells
    them. Its answers end with the stop word, which is cut here. Its tokenizer puts BOS in front of
    every prompt (``add_special_tokens`` of its ``preprocessing``, which is true where it is not
    set), so the prompt's own is taken off.
    """

    contract = "inflight_batcher"
    inputs: ClassVar = {tensor.name: tensor for tensor in contracts.INFLIGHT_BATCHER_INPUTS}

    def input_values(
        self, prompt: str, sampling: Sampling, streaming: bool, signature: ModelSignature
    ) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {
            "text_input": [prompt.removeprefix(self.added_bos)],
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

    def reading(self, sampling: Sampling, signature: ModelSignature) -> Reading:
        return Reading(stop=sampling.stop, counts_add=True, logprobs=sampling.logprobs)
