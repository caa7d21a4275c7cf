"""The router's partners in the same Triton over BLS: retrieval and the example manager."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm import contracts
from echolm.errors import EchoError, InvalidRequestError, UnavailableError
from echolm.primitives import Interaction, Request, Retrieved, Selected
from echolm.router.batcher import Batcher
from echolm.triton import codec


def _tensor(name: str, datatype: str, values: Any, shape: Sequence[int]) -> Any:
    return codec.tensor(contracts.Tensor(name, datatype, ()), values, shape)


def _raise(model: str, error: Any) -> None:
    """A BLS error as one of ours."""
    message = error.message()
    code = error.code() if hasattr(error, "code") else None
    if code == pb_utils.TritonError.INVALID_ARG:
        raise InvalidRequestError(message)
    raise UnavailableError(f"{model}: {message}")


def _outputs(model: str, response: Any) -> dict[str, NDArray[Any]]:
    if response.has_error():
        _raise(model, response.error())
    return {t.name(): t.as_numpy() for t in response.output_tensors()}


def _late(model: str, timeout_s: float) -> UnavailableError:
    return UnavailableError(f"{model}: no answer in {timeout_s} s")


async def _infer(model: str, inputs: Sequence[Any], timeout_s: float) -> dict[str, NDArray[Any]]:
    """One BLS call to a model that is not decoupled."""

    def call() -> dict[str, NDArray[Any]]:
        request = pb_utils.InferenceRequest(
            model_name=model, requested_output_names=[], inputs=list(inputs)
        )
        return _outputs(model, request.exec())

    loop = asyncio.get_running_loop()
    try:
        return await asyncio.wait_for(loop.run_in_executor(None, call), timeout_s)
    except asyncio.TimeoutError:
        raise _late(model, timeout_s) from None
    except EchoError:
        raise
    except Exception as error:  # pb_utils raises TritonModelException, e.g. for a model not loaded
        raise UnavailableError(f"{model}: {error}") from error


class BLSRetriever:
    """The ``retrieval`` ensemble: tokenizer, embedder, retriever.

    Requests go to it in batches as they gather: each call passes tensors through five
    processes, which costs more than a request's own work there.
    """

    def __init__(self, timeout_s: float, max_running: int) -> None:
        self._timeout_s = timeout_s
        self._batcher = Batcher(self._retrieve, contracts.MAX_BATCH_SIZE, max_running)

    async def retrieve(self, request: Request) -> Retrieved:
        try:
            return await asyncio.wait_for(self._batcher(request), self._timeout_s)
        except asyncio.TimeoutError:
            raise _late(contracts.RETRIEVAL.name, self._timeout_s) from None

    async def _retrieve(self, requests: Sequence[Request]) -> list[Retrieved]:
        column = (len(requests), 1)
        controls = ["default" if r.use_examples else "no-examples" for r in requests]
        out = await _infer(
            contracts.RETRIEVAL.name,
            [
                _tensor("text_input", "BYTES", [r.text for r in requests], column),
                _tensor("system_prompt", "BYTES", [r.system_prompt for r in requests], column),
                _tensor("tenant", "BYTES", [r.tenant for r in requests], column),
                _tensor("cache_control", "BYTES", controls, column),
            ],
            self._timeout_s,
        )
        # The arrays are views of Triton's memory, which goes with the response.
        embeddings = np.array(out["embedding"], dtype=np.float32)
        return [
            Retrieved(
                embedding=embeddings[row],
                examples=_examples(out, row),
                help_probability=float(out["help_probability"][row, 0]),
                selection=out["selection_record"][row, 0].decode("utf-8"),
                degraded=out["retrieval_degraded"][row, 0].decode("utf-8"),
            )
            for row in range(len(requests))
        ]


def _examples(out: dict[str, NDArray[Any]], row: int) -> tuple[Selected, ...]:
    columns = zip(
        out["example_ids"][row].tolist(),
        out["example_requests"][row],
        out["example_responses"][row],
        out["example_similarities"][row].tolist(),
        out["example_utilities"][row].tolist(),
        strict=True,
    )
    return tuple(
        Selected(i, q.decode("utf-8"), a.decode("utf-8"), s, u)
        for i, q, a, s, u in columns
        if i != contracts.PAD_ID
    )


class BLSTextEmbedder:
    """Tokenizer and embedder by way of the ``retrieval`` ensemble, which searches nothing then."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        n = len(texts)
        out = await _infer(
            contracts.RETRIEVAL.name,
            [
                _tensor("text_input", "BYTES", list(texts), (n, 1)),
                _tensor("cache_control", "BYTES", ["no-examples"] * n, (n, 1)),
            ],
            self._timeout_s,
        )
        return np.array(out["embedding"], dtype=np.float32)


class BLSExampleManager:
    """Hands interactions to the ``example_manager`` model."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s

    async def submit(self, interaction: Interaction) -> None:
        await _infer(
            contracts.EXAMPLE_MANAGER.name,
            [
                _tensor("request", "BYTES", [interaction.request], (1, 1)),
                _tensor("response", "BYTES", [interaction.response], (1, 1)),
                _tensor("embedding", "FP32", interaction.embedding, (1, -1)),
                _tensor("tenant", "BYTES", [interaction.tenant], (1, 1)),
                _tensor("system_prompt", "BYTES", [interaction.system_prompt], (1, 1)),
                _tensor("llm", "BYTES", [interaction.llm], (1, 1)),
                _tensor("finish_reason", "BYTES", [interaction.finish_reason], (1, 1)),
                _tensor("quality", "FP32", [interaction.quality], (1, 1)),
                _tensor("help_probability", "FP32", [interaction.help_probability], (1, 1)),
            ],
            self._timeout_s,
        )
