"""The models ``echolm`` (one response) and ``echolm_stream`` (decoupled): the router.

They are python models and not ensembles for two reasons, both seen in Triton 2.51: an
ensemble does not pass a client's cancellation on to a step that is already running, and one
failing step fails the whole request where EchoLM answers without examples.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.errors import CancelledError, EchoError, InvalidRequestError, UnavailableError
from echolm.primitives import Answer, Request
from echolm.router.validation import build_request
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.bls import BLSExampleManager, BLSRetriever, BLSTextEmbedder
from echolm.triton.learning import keep_learning, learn_at_start
from echolm.triton.metrics import (
    Metrics,
    TritonJudgingMetrics,
    TritonRouterMetrics,
    process_label,
)
from echolm.triton.responder import Responder
from echolm.triton.runtime import Runtime
from echolm.wiring.routing import build_router, open_load_table

_SHOW_LOAD_EVERY_S = 0.2
_SPECS = {t.name: t for t in contracts.ECHOLM_OUTPUTS}
_TEXT_OUTPUT = _SPECS["text_output"]


class TritonPythonModel:
    """Answers requests without ever blocking its instance."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._model, self._name = args["model_name"], process_label(args)
        self._settings = settings = load_settings()
        self._metrics = Metrics()
        self._load = open_load_table(settings)
        retrieval = settings.retrieval
        router = build_router(
            settings,
            load=self._load,
            retriever=BLSRetriever(retrieval.timeout_s, retrieval.batches_in_flight),
            embedder=BLSTextEmbedder(retrieval.timeout_s),
            sink=BLSExampleManager(),
            metrics=TritonRouterMetrics(self._metrics, settings.strongest_llm.name),
            judging_metrics=TritonJudgingMetrics(self._metrics),
        )
        self._service, self._bias = router.service, router.bias
        learn_at_start(router.learner)
        self._runtime = Runtime(self._name)
        self._runtime.spawn(self._metrics.run())
        self._runtime.spawn(keep_learning(router.learner, self._metrics, self._name))
        self._runtime.spawn(self._show_load())
        self._runtime.spawn(router.usage.run())

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            responder = Responder(request)
            try:
                rows = read_requests(request, self._settings)
                if self._decoupled and len(rows) != 1:
                    raise InvalidRequestError.of(
                        "batch", f"one request for {self._model}", f"{len(rows)}"
                    )
                self._check_room()
            except Exception as problem:
                overloaded = isinstance(problem, UnavailableError)
                reason = "overload" if overloaded else "invalid"
                self._metrics.add("echolm_failed_total", reason=reason)
                responder.fail(problem)
                continue
            self._runtime.spawn(self._respond(rows, responder), responder)

    def _check_room(self) -> None:
        """Refuse what would only wait: better another replica answers, or the caller backs off."""
        limit = self._settings.limits.max_in_flight
        if self._runtime.in_flight >= limit:
            raise UnavailableError(
                f"{self._name}: {limit} requests are in flight already; try again later, or raise "
                "limits.max_in_flight"
            )

    async def _respond(self, rows: list[Request], responder: Responder) -> None:
        def send_piece(piece: str) -> None:
            responder.send([codec.tensor(_TEXT_OUTPUT, [piece], (1, 1))])

        streaming = self._decoupled and rows[0].stream
        try:
            answers = await _all(
                [self._service.answer(row, send_piece if streaming else None) for row in rows]
            )
        except asyncio.CancelledError:
            self._metrics.add("echolm_failed_total", reason="cancelled")
            responder.fail(CancelledError("the client went away"))
            raise
        except Exception as problem:
            if not isinstance(problem, EchoError):
                self._metrics.add("echolm_failed_total", reason="internal")
            responder.fail(problem)
            return
        responder.send(output_tensors(answers, text_sent=streaming), final=True)

    async def _show_load(self) -> None:
        """Export the load that the router sees."""
        level = self._metrics.level
        while True:
            loads = self._bias.loads()
            for llm, bias in self._bias().items():
                level("echolm_load_bias", bias, llm=llm, model=self._name)
                level("echolm_load", loads[llm], llm=llm, model=self._name)
                # This process only: the sum over the models is what the LLM has in flight.
                level(
                    "echolm_in_flight", self._load.local.in_flight(llm), llm=llm, model=self._name
                )
            level("echolm_load_table_degraded", bool(self._load.degraded), model=self._name)
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
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def read_requests(request: Any, settings: Settings) -> list[Request]:
    """The rows of one Triton request; InvalidRequestError names the first that is wrong."""
    rows = codec.read_rows(request, contracts.ECHOLM_INPUTS)
    return [build_request(settings, text=row.pop("text_input"), **row) for row in rows]


def output_tensors(answers: list[Answer], text_sent: bool) -> list[Any]:
    """The outputs of one Triton response, one row per answer.

    Args:
        text_sent: the text has gone out in pieces; the last response repeats none of it.
    """
    n = len(answers)
    width = max(len(a.example_ids) for a in answers)
    ids = np.full((n, width), contracts.PAD_ID, dtype=np.int64)
    for row, answer in enumerate(answers):
        ids[row, : len(answer.example_ids)] = answer.example_ids
    columns = {
        "text_output": ["" if text_sent else a.text for a in answers],
        "llm": [a.llm for a in answers],
        "predicted_quality": [a.predicted_quality for a in answers],
        "solicit_feedback": [a.solicit_feedback for a in answers],
        "feedback_token": [a.feedback_token for a in answers],
        "degraded": [a.degraded for a in answers],
        "finish_reason": [a.finish_reason for a in answers],
        "num_input_tokens": [a.num_input_tokens for a in answers],
        "num_output_tokens": [a.num_output_tokens for a in answers],
    }
    tensors = [codec.tensor(_SPECS[name], values, (n, 1)) for name, values in columns.items()]
    return [*tensors, codec.tensor(_SPECS["example_ids"], ids)]
