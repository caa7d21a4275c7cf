"""The models ``echolm`` (one response) and ``echolm_stream`` (decoupled): the router.

They are python models and not ensembles for two reasons, both seen in Triton 2.51: an
ensemble does not pass a client's cancellation on to a step that is already running, and one
failing step fails the whole request where EchoLM answers without examples.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import fields
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.errors import CancelledError, EchoError, InvalidRequestError, UnavailableError
from echolm.primitives import Answer, Request
from echolm.router.stored import answer_key_of
from echolm.router.validation import build_request
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.bls import BLSExampleManager, BLSRetriever, BLSTextEmbedder
from echolm.triton.learning import follow_log
from echolm.triton.metrics import RouterMetrics, process_label
from echolm.triton.responder import Responder
from echolm.triton.rows import padded
from echolm.triton.runtime import Runtime, cancel
from echolm.wiring.routing import build_router, open_load_table

_SHOW_LOAD_EVERY_S = 0.2
_TEXT_OUTPUT = contracts.ECHOLM_OUTPUTS[0]


class TritonPythonModel:
    """Answers requests without ever blocking its instance."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._model, self._name = args["model_name"], process_label(args)
        self._settings = settings = load_settings()
        self._runtime = Runtime(self._name)
        self._metrics = RouterMetrics(self._runtime, settings.strongest_llm.name)
        self._load = open_load_table(settings)
        retrieval = settings.retrieval
        router = build_router(
            settings,
            load=self._load,
            retriever=BLSRetriever(
                retrieval.timeout_s,
                retrieval.batches_in_flight,
                partial(answer_key_of, settings),
            ),
            embedder=BLSTextEmbedder(retrieval.timeout_s),
            sink=BLSExampleManager(),
            metrics=self._metrics,
            judging_metrics=self._metrics,
            reuse_metrics=self._metrics,
        )
        self._service, self._bias, self._warm_up = router.service, router.bias, router.warm_up
        follow_log(router.learner, self._runtime, self._metrics, self._name)
        self._runtime.spawn(self._show_state())
        self._runtime.spawn(router.usage.run())
        if router.comparisons is not None:
            self._runtime.spawn(router.comparisons.run())

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            responder = Responder(request)
            try:
                rows = self._read(request)
            except Exception as problem:
                overloaded = isinstance(problem, UnavailableError)
                self._metrics.failed("overload" if overloaded else "invalid")
                responder.fail(problem)
                continue
            self._runtime.spawn(self._respond(rows, responder), responder)

    def _read(self, request: Any) -> list[Request]:
        """The rows of one Triton request, if all can be answered."""
        rows = codec.read_rows(request, contracts.ECHOLM_INPUTS)
        parsed = [build_request(self._settings, text=r.pop("text_input"), **r) for r in rows]
        if self._decoupled and len(rows) != 1:
            raise InvalidRequestError.of("batch", f"one request for {self._model}", f"{len(rows)}")
        # What would only wait is refused: another replica answers, or the caller backs off.
        limit = self._settings.limits.max_in_flight
        if self._runtime.in_flight >= limit:
            raise UnavailableError(
                f"{self._name}: {limit} requests are in flight already; try again later, or raise "
                "limits.max_in_flight"
            )
        return parsed

    async def _respond(self, rows: list[Request], responder: Responder) -> None:
        def send_piece(piece: str) -> None:
            responder.send([codec.text_tensor(_TEXT_OUTPUT.name, piece)])

        streaming = self._decoupled and rows[0].stream
        on_text = send_piece if streaming else None
        try:
            answers = await _all([self._service.answer(row, on_text) for row in rows])
        except asyncio.CancelledError:
            self._metrics.failed("cancelled")
            responder.fail(CancelledError("the client went away"))
            raise
        except Exception as problem:
            if not isinstance(problem, EchoError):
                self._metrics.failed("internal")
            responder.fail(problem)
            return
        responder.send(output_tensors(answers, text_sent=streaming), final=True)

    async def _show_state(self) -> None:
        """Export the load that the router sees, and which LLMs it may draw."""
        level = self._metrics.level
        while True:
            loads = self._bias.loads()
            for llm, bias in self._bias().items():
                level("echolm_load_bias", bias, llm=llm, model=self._name)
                level("echolm_load", loads[llm], llm=llm, model=self._name)
                # This process only: the sum over the models is what the LLM has in flight.
                in_flight = self._load.local.in_flight(llm)
                level("echolm_in_flight", in_flight, llm=llm, model=self._name)
            level("echolm_load_table_degraded", bool(self._load.degraded), model=self._name)
            for llm, cell, evidence, held in self._warm_up.evidence():
                labels = {"llm": llm, "examples": cell, "model": self._name}
                level("echolm_evidence", evidence, **labels)
                level("echolm_warm_up", float(held), **labels)
            await asyncio.sleep(_SHOW_LOAD_EVERY_S)

    def finalize(self) -> None:
        self._runtime.close()
        self._load.close()
        self._metrics.flush()


async def _all(work: list[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """All answers; when one fails, nobody waits for the others, so they are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        await cancel(tasks)
        raise


def output_tensors(answers: list[Answer], text_sent: bool) -> list[Any]:
    """The outputs of one Triton response, one row per answer.

    Args:
        text_sent: the text has gone out in pieces; the last response repeats none of it.
    """
    columns = {f.name: [getattr(answer, f.name) for answer in answers] for f in fields(Answer)}
    columns["text_output"] = ["" if text_sent else answer.text for answer in answers]
    columns["example_ids"] = padded(columns["example_ids"], contracts.PAD_ID)
    return codec.tensors(contracts.ECHOLM_OUTPUTS, len(answers), columns)
