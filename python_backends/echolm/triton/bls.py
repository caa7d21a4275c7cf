"""The router's partners in the same Triton over BLS: retrieval and the example manager."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm import contracts
from echolm.errors import EchoError, UnavailableError, from_remote
from echolm.primitives import Interaction, Request, Retrieved, Reusable, Selected
from echolm.router.batcher import Batcher
from echolm.triton import codec

T = TypeVar("T")


async def _in_time(answer: Awaitable[T], model: str, timeout_s: float) -> T:
    try:
        return await asyncio.wait_for(answer, timeout_s)
    except asyncio.TimeoutError:
        raise UnavailableError(f"{model}: no answer in {timeout_s} s") from None


async def _infer(
    model: contracts.ModelContract, rows: int, columns: Mapping[str, Any], timeout_s: float
) -> dict[str, NDArray[Any]]:
    """One BLS call to a model that is not decoupled, with a value for each row by input."""

    def call() -> dict[str, NDArray[Any]]:
        request = pb_utils.InferenceRequest(
            model_name=model.name,
            requested_output_names=[],
            inputs=codec.tensors(model.inputs, rows, columns),
        )
        response = request.exec()
        if response.has_error():
            error = response.error()
            refused = error.code() == pb_utils.TritonError.INVALID_ARG
            raise from_remote(model.name, error.message(), refused)
        return {t.name(): t.as_numpy() for t in response.output_tensors()}

    work = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await _in_time(work, model.name, timeout_s)
    except EchoError:
        raise
    except Exception as error:  # pb_utils raises TritonModelException, e.g. for a model not loaded
        raise UnavailableError(f"{model.name}: {error}") from error


class BLSRetriever:
    """The ``retrieval`` ensemble: tokenizer, embedder, retriever.

    Requests go to it in batches as they gather: each call passes tensors through five
    processes, which costs more than a request's own work there.
    """

    def __init__(
        self, timeout_s: float, max_running: int, answer_key: Callable[[Request], str]
    ) -> None:
        """
        Args:
            answer_key: under which a stored answer must have been given to be reusable; empty
                where none is.
        """
        self._timeout_s = timeout_s
        self._answer_key = answer_key
        self._batcher = Batcher(self._retrieve, contracts.MAX_BATCH_SIZE, max_running)

    async def retrieve(self, request: Request) -> Retrieved:
        return await _in_time(self._batcher(request), contracts.RETRIEVAL.name, self._timeout_s)

    async def _retrieve(self, requests: Sequence[Request]) -> list[Retrieved]:
        columns = {
            "text_input": [r.text for r in requests],
            "system_prompt": [r.system_prompt for r in requests],
            "tenant": [r.tenant for r in requests],
            "search": [r.use_examples for r in requests],
            "answer_key": [self._answer_key(r) for r in requests],
            "learn": [r.store for r in requests],
        }
        out = await _infer(contracts.RETRIEVAL, len(requests), columns, self._timeout_s)
        # The arrays are views of Triton's memory, which goes with the response.
        embeddings = np.array(out["embedding"], dtype=np.float32)
        return [
            Retrieved(
                embedding=embeddings[row],
                examples=_examples(out, row),
                help_probability=float(out["help_probability"][row, 0]),
                selection=out["selection_record"][row, 0].decode(),
                degraded=out["retrieval_degraded"][row, 0].decode(),
                reusable=_reusable(out, row),
            )
            for row in range(len(requests))
        ]


def _examples(out: dict[str, NDArray[Any]], row: int) -> tuple[Selected, ...]:
    names = ("ids", "requests", "responses", "similarities", "utilities", "agreements")
    columns = (out[f"example_{name}"][row].tolist() for name in names)
    return tuple(
        Selected(id, request.decode(), response.decode(), *numbers)
        for id, request, response, *numbers in zip(*columns, strict=True)
        if id != contracts.PAD_ID
    )


def _reusable(out: dict[str, NDArray[Any]], row: int) -> Reusable | None:
    id, exact = int(out["reusable_id"][row, 0]), bool(out["reusable_exact"][row, 0])
    features = np.array(out["reusable_features"][row], dtype=np.float32)
    response = out["reusable_response"][row, 0].decode()
    return None if id == contracts.PAD_ID else Reusable(id, response, exact, features)


class BLSTextEmbedder:
    """Tokenizer and embedder by way of the ``retrieval`` ensemble, which searches nothing then."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        n = len(texts)
        # These are answers and stored examples, and not requests.
        columns = {"text_input": texts, "search": [False] * n, "learn": [False] * n}
        out = await _infer(contracts.RETRIEVAL, n, columns, self._timeout_s)
        return np.array(out["embedding"], dtype=np.float32)


class BLSExampleManager:
    """Submits interactions to the ``example_manager`` model."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s

    async def submit(self, interaction: Interaction) -> None:
        columns = {name: [value] for name, value in vars(interaction).items()}
        await _infer(contracts.EXAMPLE_MANAGER, 1, columns, self._timeout_s)
