"""Models of the same Triton over BLS, for what is done off the path: embedder, example manager."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm import contracts
from echolm.errors import EchoError, UnavailableError, from_remote
from echolm.internal_calls import PROOF, CallProofs, contents
from echolm.primitives import Interaction
from echolm.triton import codec


async def _infer(
    model: contracts.ModelContract,
    rows: int,
    columns: Mapping[str, Any],
    timeout_s: float,
    proofs: CallProofs | None = None,
) -> dict[str, NDArray[Any]]:
    """One BLS call to a model that is not decoupled, with a value for each row by input.

    Args:
        proofs: signs all inputs, for a model that wants it.
    """

    def call() -> dict[str, NDArray[Any]]:
        inputs = codec.tensors(model.inputs, rows, columns)
        parameters = {}
        if proofs is not None:
            signed = {tensor.name(): contents(tensor.as_numpy()) for tensor in inputs}
            parameters[PROOF] = proofs.sign(model.name, signed)
        request = pb_utils.InferenceRequest(
            model_name=model.name,
            requested_output_names=[],
            inputs=inputs,
            parameters=parameters,
        )
        response = request.exec()
        if response.has_error():
            error = response.error()
            refused = error.code() == pb_utils.TritonError.INVALID_ARG
            raise from_remote(model.name, error.message(), refused)
        return {t.name(): t.as_numpy() for t in response.output_tensors()}

    work = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.wait_for(work, timeout_s)
    except asyncio.TimeoutError:
        raise UnavailableError(f"{model.name}: no answer in {timeout_s} s") from None
    except EchoError:
        raise
    except Exception as error:  # pb_utils raises TritonModelException, e.g. for a model not loaded
        raise UnavailableError(f"{model.name}: {error}") from error


class BLSTextEmbedder:
    """Tokenizer and embedder by way of the ``text_embedding`` ensemble."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        columns = {"text_input": texts}
        out = await _infer(contracts.TEXT_EMBEDDING, len(texts), columns, self._timeout_s)
        # The array is a view of Triton's memory, which goes with the response.
        return np.array(out["embedding"], dtype=np.float32)


class BLSExampleManager:
    """Submits interactions to the ``example_manager`` model."""

    def __init__(self, proofs: CallProofs, timeout_s: float = 10.0) -> None:
        self._proofs, self._timeout_s = proofs, timeout_s

    async def submit(self, interaction: Interaction) -> None:
        columns = {name: [value] for name, value in vars(interaction).items()}
        await _infer(contracts.EXAMPLE_MANAGER, 1, columns, self._timeout_s, self._proofs)
