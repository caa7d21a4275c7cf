"""The router's partners behind Triton: retrieval, LLMs and the example manager, over BLS."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm import contracts
from echolm.errors import ContextLengthError, EchoError, InvalidRequestError, UnavailableError
from echolm.generation.llm import Completion, OnText, Sampling
from echolm.retrieval.selection import Selected
from echolm.routing.request import Request
from echolm.routing.service import Exchange, Retrieved
from echolm.triton.codec import NUMPY_TYPES

logger = logging.getLogger("echolm")

_STOP_PATIENCE_S = (0.5, 2.0, 10.0)
_LLM_INPUTS = {t.name: t for t in contracts.LLM_API_INPUTS}


def _tensor(name: str, datatype: str, values: Any, shape: Sequence[int]) -> Any:
    if datatype == "BYTES":
        array = np.empty(len(values), dtype=np.object_)
        array[:] = [value.encode("utf-8") for value in values]
    else:
        array = np.asarray(values, dtype=NUMPY_TYPES[datatype])
    return pb_utils.Tensor(name, array.reshape(tuple(shape)))


def _raise(model: str, error: Any) -> None:
    """A BLS error as one of ours."""
    message = error.message()
    code = error.code() if hasattr(error, "code") else None
    if code == pb_utils.TritonError.INVALID_ARG:
        kind = ContextLengthError if "context" in message else InvalidRequestError
        raise kind(message)
    raise UnavailableError(f"{model}: {message}")


def _outputs(model: str, response: Any) -> dict[str, NDArray[Any]]:
    if response.has_error():
        _raise(model, response.error())
    return {t.name(): t.as_numpy() for t in response.output_tensors()}


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
        raise UnavailableError(f"{model}: no answer in {timeout_s} s") from None
    except EchoError:
        raise
    except Exception as error:  # pb_utils raises TritonModelException, e.g. for a model not loaded
        raise UnavailableError(f"{model}: {error}") from error


class BLSRetriever:
    """The ``retrieval`` ensemble: tokenizer, embedder, retriever."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def retrieve(self, request: Request) -> Retrieved:
        control = "default" if request.use_examples else "no-examples"
        out = await _infer(
            contracts.RETRIEVAL.name,
            [
                _tensor("text_input", "BYTES", [request.text], (1, 1)),
                _tensor("system_prompt", "BYTES", [request.system_prompt], (1, 1)),
                _tensor("tenant", "BYTES", [request.tenant], (1, 1)),
                _tensor("cache_control", "BYTES", [control], (1, 1)),
            ],
            self._timeout_s,
        )
        rows = zip(
            out["example_ids"][0],
            out["example_requests"][0],
            out["example_responses"][0],
            out["example_similarities"][0],
            out["example_utilities"][0],
            strict=True,
        )
        return Retrieved(
            embedding=np.array(out["embedding"][0], dtype=np.float32),
            examples=tuple(
                Selected(int(i), q.decode("utf-8"), a.decode("utf-8"), float(s), float(u))
                for i, q, a, s, u in rows
                if i != contracts.PAD_ID
            ),
            degraded=out["retrieval_degraded"].reshape(-1)[0].decode("utf-8"),
        )


class BLSExampleManager:
    """Hands exchanges to the ``example_manager`` model."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s

    async def offer(self, exchange: Exchange) -> None:
        await _infer(
            contracts.EXAMPLE_MANAGER.name,
            [
                _tensor("request", "BYTES", [exchange.request], (1, 1)),
                _tensor("response", "BYTES", [exchange.response], (1, 1)),
                _tensor("embedding", "FP32", exchange.embedding, (1, -1)),
                _tensor("tenant", "BYTES", [exchange.tenant], (1, 1)),
                _tensor("system_prompt", "BYTES", [exchange.system_prompt], (1, 1)),
                _tensor("llm", "BYTES", [exchange.llm], (1, 1)),
                _tensor("finish_reason", "BYTES", [exchange.finish_reason], (1, 1)),
                _tensor("quality", "FP32", [exchange.quality], (1, 1)),
            ],
            self._timeout_s,
        )


@dataclass(frozen=True)
class _Generation:
    """One call to an LLM: whether nobody waits for it any more, and whether it is over."""

    request_id: str
    abandoned: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


class LLMAPIClient:
    """An LLM that speaks TensorRT-LLM's LLM-API contract (decoupled, no batch dimension).

    A thread iterates over each generation's responses, since iterating a decoupled BLS
    response blocks. A generation is cancelled with the contract's ``stop`` input under the
    same request id, because a BLS request itself cannot be cancelled.
    """

    def __init__(self, model: str) -> None:
        self._model = model

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_text: OnText | None
    ) -> Completion:
        loop = asyncio.get_running_loop()
        inputs = self._inputs(prompt, sampling, streaming=on_text is not None)

        def forward(piece: str) -> None:
            assert on_text is not None
            loop.call_soon_threadsafe(on_text, piece)

        generation = _Generation(request_id)
        work = loop.run_in_executor(
            None, self._run, generation, inputs, forward if on_text is not None else None
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            generation.abandoned.set()
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
            # Not on the executor, whose threads may all be busy with generations.
            threading.Thread(
                target=self._stop, args=(generation,), name="llm-stop", daemon=True
            ).start()
            raise

    def _inputs(self, prompt: str, sampling: Sampling, streaming: bool) -> list[Any]:
        values: Mapping[str, Any] = {
            "text_input": [prompt],
            "streaming": [streaming],
            "sampling_param_max_tokens": [sampling.max_tokens],
            "sampling_param_temperature": [sampling.temperature],
            "sampling_param_top_p": [sampling.top_p],
            "sampling_param_top_k": [sampling.top_k],
            "sampling_param_seed": None if sampling.seed is None else [sampling.seed],
            "sampling_param_stop": list(sampling.stop) or None,
            "sampling_param_exclude_input_from_output": [True],
            "return_finish_reason": [True],
        }
        return [
            _tensor(name, _LLM_INPUTS[name].datatype, value, (len(value),))
            for name, value in values.items()
            if value is not None
        ]

    def _run(
        self, generation: _Generation, inputs: list[Any], forward: OnText | None
    ) -> Completion:
        try:
            if generation.abandoned.is_set():
                raise UnavailableError("abandoned before it began")
            return self._receive(generation.request_id, inputs, forward)
        finally:
            generation.ended.set()

    def _receive(self, request_id: str, inputs: list[Any], forward: OnText | None) -> Completion:
        pieces: list[str] = []
        finish_reason = ""
        counts = {"num_input_tokens": -1, "num_output_tokens": -1}
        try:
            request = pb_utils.InferenceRequest(
                model_name=self._model,
                request_id=request_id,
                requested_output_names=[],
                inputs=inputs,
            )
            for response in request.exec(decoupled=True):
                out = _outputs(self._model, response)
                if "text_output" not in out:
                    continue  # the empty response that closes the stream
                piece = out["text_output"].reshape(-1)[0].decode("utf-8", "replace")
                pieces.append(piece)
                if forward is not None and piece:
                    forward(piece)
                if "finish_reason" in out and out["finish_reason"].size:
                    finish_reason = out["finish_reason"].reshape(-1)[0].decode() or finish_reason
                for name in counts:
                    if name in out:
                        counts[name] = int(out[name].reshape(-1)[0])
        except EchoError:
            raise
        except Exception as error:  # e.g. TritonModelException: the model is not loaded
            raise UnavailableError(f"{self._model}: {error}") from error
        if not pieces:
            raise UnavailableError(f"{self._model}: ended without an answer")
        return Completion("".join(pieces), finish_reason, **counts)

    def _stop(self, generation: _Generation) -> None:
        # Again after a while: the first may have overtaken the request that it is to stop.
        for patience_s in _STOP_PATIENCE_S:
            self._send_stop(generation.request_id)
            if generation.ended.wait(patience_s):
                return
        logger.warning("%s: a cancelled generation runs on to its end", self._model)

    def _send_stop(self, request_id: str) -> None:
        try:
            request = pb_utils.InferenceRequest(
                model_name=self._model,
                request_id=request_id,
                requested_output_names=[],
                inputs=[
                    _tensor("text_input", "BYTES", [""], (1,)),
                    _tensor("stop", "BOOL", [True], (1,)),
                ],
            )
            for _ in request.exec(decoupled=True):
                pass
        except Exception as error:  # the generation ends by itself at max_tokens
            logger.warning("%s: not stopped: %s", self._model, error)


CONTRACTS = {"llmapi": LLMAPIClient}
"""LLM clients by the name of the contract they speak (``llms.contract``)."""
