"""The model ``remote_llm``: LLMs that another server has (``llms.url``), as if this one did.

The front door calls models of its own server only. The contract is our LLM model's, and ``llm``
says which of the configured LLMs is meant.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections import Counter
from typing import Any

import orjson

from echolm import contracts
from echolm.engines.base import FINISH_CANCELLED
from echolm.engines.gathering import Gatherer
from echolm.engines.request import LLMRequest, parse_request, scalar
from echolm.errors import CancelledError, EchoError, InvalidRequestError
from echolm.primitives import Completion, Piece, decode
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.metrics import Metrics
from echolm.triton.responder import Responder
from echolm.triton.runtime import Runtime
from echolm.wiring.internal_calls import llm_call_proofs
from echolm.wiring.llms import build_llm_clients

logger = logging.getLogger("echolm")

_TEXT_OUTPUT = contracts.LLM_API_OUTPUTS[0]
_OUTPUTS = {spec.name: spec for spec in contracts.REMOTE_LLM.outputs}
_CHECK_EVERY_S = _CHECK_TIMEOUT_S = 10.0
_SHOW_EVERY_S = 0.5


class TritonPythonModel:
    """Passes requests on, and answers back; a client that goes away cancels its request there."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        self._name = args["model_name"]
        self._proofs = llm_call_proofs(settings)
        self._runtime = Runtime(self._name)
        clients = build_llm_clients(settings)
        self._clients = {llm.name: clients[llm.name] for llm in settings.llms if llm.url}
        self._keys = itertools.count(1)
        self._metrics = Metrics(self._runtime)
        self._in_flight = Counter(dict.fromkeys(self._clients, 0))
        for name in self._clients:
            self._count(name)  # shown from the start on
            self._runtime.spawn(self._watch(name))
        self._runtime.spawn(self._show())

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            responder = Responder(request)
            try:
                llm, parsed = self._read(request)
            except Exception as problem:
                responder.fail(problem)
                continue
            self._runtime.spawn(self._answer(llm, parsed, responder), responder)

    def _read(self, request: Any) -> tuple[str, LLMRequest]:
        if self._proofs is not None:
            self._metrics.check_proof(request, self._proofs, self._name)
        inputs = {
            spec.name: array.reshape(-1).tolist()
            for spec in contracts.REMOTE_LLM.inputs
            if (array := codec.read(request, spec.name)) is not None
        }
        name = decode(scalar(inputs, "llm"), "llm")
        del inputs["llm"]
        if name not in self._clients:
            expected = f"one of {sorted(self._clients)}, which have an llms.url"
            raise InvalidRequestError.of("llm", expected, name)
        parameters = json.loads(request.parameters() or "{}")
        return name, parse_request(f"r{next(self._keys)}", inputs, parameters)

    async def _answer(self, llm: str, request: LLMRequest, responder: Responder) -> None:
        generation = request.generation

        def send_piece(piece: Piece) -> None:
            responder.send([codec.tensor(_TEXT_OUTPUT, [piece.text]), *_json_outputs(piece)])

        call_later = asyncio.get_running_loop().call_later
        pieces = Gatherer(send_piece, Piece.joined, request.stream_interval_s, call_later)
        self._in_flight[llm] += 1
        try:
            completion = await self._clients[llm].generate(
                generation.request_id,
                generation.prompt,
                generation.sampling,
                pieces if generation.streaming else None,
            )
            pieces.flush()
            cancelled = completion.finish_reason == FINISH_CANCELLED
            prompt, generated = completion.num_input_tokens, completion.num_output_tokens
            outputs = _outputs(completion, generation.streaming)
            self._count(llm, max(0, prompt), max(0, generated), cancelled)
            responder.send(outputs, final=True)
        except asyncio.CancelledError:
            pieces.drop()
            self._count(llm, cancelled=True)
            responder.fail(CancelledError("the client went away"))
            raise
        except Exception as problem:
            pieces.drop()
            self._count(llm, failed=not isinstance(problem, InvalidRequestError))
            responder.fail(problem)
        finally:
            self._in_flight[llm] -= 1

    def _count(
        self,
        llm: str,
        prompt: int = 0,
        generated: int = 0,
        cancelled: bool = False,
        failed: bool = False,
    ) -> None:
        add = self._metrics.add
        add("echolm_llm_prompt_tokens_total", prompt, model=llm)
        add("echolm_llm_generated_tokens_total", generated, model=llm)
        add("echolm_llm_cancelled_total", cancelled, model=llm)
        add("echolm_llm_failed_total", failed, model=llm)

    async def _watch(self, llm: str) -> None:
        """Ask the LLM's server again and again whether it is there."""
        known = ""
        while True:
            problem = ""
            try:
                await asyncio.wait_for(self._clients[llm].check(), _CHECK_TIMEOUT_S)
            except (EchoError, asyncio.TimeoutError) as error:
                problem = str(error) or f"{llm}: no answer in {_CHECK_TIMEOUT_S:g} s"
            if problem != known:
                known = problem
                logger.warning("LLM %s is %s", llm, f"not ready: {problem}" if problem else "ready")
            self._metrics.level("echolm_llm_ready", float(not problem), model=llm)
            await asyncio.sleep(_CHECK_EVERY_S)

    async def _show(self) -> None:
        while True:
            for llm, count in self._in_flight.items():
                self._metrics.level("echolm_llm_in_flight", count, model=llm)
            await asyncio.sleep(_SHOW_EVERY_S)

    def finalize(self) -> None:
        self._runtime.close()


def _outputs(completion: Completion, text_sent: bool) -> list[Any]:
    values: dict[str, Any] = {
        "text_output": "" if text_sent else completion.text,
        "finish_reason": completion.finish_reason,
        "num_input_tokens": completion.num_input_tokens,
        "num_output_tokens": completion.num_output_tokens,
    }
    if completion.cumulative_logprob is not None:
        values |= dict.fromkeys(
            ("cumulative_logprob", "cum_log_probs"), completion.cumulative_logprob
        )
    tensors = [codec.tensor(_OUTPUTS[name], [value]) for name, value in values.items()]
    if completion.token_logprobs:
        tensors.append(codec.tensor(contracts.LOG_PROBS[1], completion.token_logprobs))
    return tensors if text_sent else [*tensors, *_json_outputs(completion)]


def _json_outputs(said: Piece | Completion) -> list[Any]:
    """Calls of tools and tokens, as far as there are any."""
    values = {"tool_calls": said.tool_calls, "logprobs": said.logprobs}
    return [
        codec.tensor(_OUTPUTS[name], [orjson.dumps(value)])
        for name, value in values.items()
        if value
    ]
