"""The models ``echolm`` (one response) and ``echolm_stream`` (decoupled): the router.

They are python models and not ensembles for two reasons, both seen in Triton 2.51: an
ensemble does not pass a client's cancellation on to a step that is already running, and one
failing step fails the whole request where EchoLM answers without examples.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.bandit.learning import BanditLearning
from echolm.errors import CancelledError, EchoError, InvalidRequestError, UnavailableError
from echolm.examples.usage import UsageRecorder
from echolm.judges.service import JudgingService
from echolm.learning.event_log import EventLog
from echolm.learning.learner import Learner
from echolm.learning.tokens import FeedbackTokens
from echolm.llm.endpoint import LLMEndpoint
from echolm.load.bias import LoadBias
from echolm.load.table import LoadTable
from echolm.primitives import Answer, Request
from echolm.router.policy import Policy
from echolm.router.ports import AnswerObserver, NoObserver, Observers
from echolm.router.service import RouterService
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
from echolm.wiring import (
    build_bandit,
    build_endpoints,
    build_judge,
    build_llm_clients,
    open_event_log,
)

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
        self._load = LoadTable(
            settings.load_table_path,
            [llm.name for llm in settings.llms],
            settings.routing.load_half_life_s,
        )
        self._bias = LoadBias(settings.routing, settings.llms, self._load)
        featurizer, bandit = build_bandit(settings)
        log = open_event_log(settings)
        learner = Learner(log, [BanditLearning(bandit)], settings.learning.snapshot_every)
        learn_at_start(learner)
        policy = Policy(featurizer, bandit, self._bias, np.random.default_rng())
        targets = build_endpoints(settings, build_llm_clients(settings))
        usage = UsageRecorder(log, settings.relative_costs)
        self._service = RouterService(
            settings=settings,
            endpoints=targets,
            retriever=BLSRetriever(
                settings.retrieval.timeout_s, settings.retrieval.batches_in_flight
            ),
            policy=policy,
            tokens=FeedbackTokens(
                settings.feedback.signing_key.get_secret_value(), settings.feedback.token_ttl_s
            ),
            sink=BLSExampleManager(),
            load=self._load,
            metrics=TritonRouterMetrics(self._metrics, settings.strongest_llm.name),
            observer=Observers((usage, self._judging(targets, policy, log))),
        )
        self._runtime = Runtime(self._name)
        self._runtime.spawn(self._metrics.run())
        self._runtime.spawn(keep_learning(learner, self._metrics, self._name))
        self._runtime.spawn(self._show_load())
        self._runtime.spawn(usage.run())

    def _judging(
        self, targets: Mapping[str, LLMEndpoint], policy: Policy, log: EventLog
    ) -> AnswerObserver:
        """What judges a share of the answers, if that is configured."""
        settings = self._settings
        embedder = BLSTextEmbedder(settings.retrieval.timeout_s)
        judge = build_judge(settings, targets, embedder, self._load)
        if judge is None:
            return NoObserver()
        return JudgingService(
            settings=settings,
            judge=judge,
            targets=targets,
            policy=policy,
            load=self._load,
            log=log,
            metrics=TritonJudgingMetrics(self._metrics),
        )

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
        """Show what the router sees of the load."""
        level = self._metrics.level
        while True:
            loads = self._bias.loads()
            for llm, bias in self._bias().items():
                level("echolm_load_bias", bias, llm=llm, model=self._name)
                level("echolm_load", loads[llm], llm=llm, model=self._name)
                # Its own only: the sum over the models is what the LLM has in flight.
                in_flight = self._load.local.in_flight(llm)
                level("echolm_in_flight", in_flight, llm=llm, model=self._name)
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
    arrays = {spec.name: codec.read(request, spec.name) for spec in contracts.ECHOLM_INPUTS}
    texts = arrays["text_input"]
    if texts is None:
        raise InvalidRequestError.of("text_input", "a BYTES tensor of shape [1, 1]", "none")
    num_rows = texts.shape[0]

    def value(name: str, row: int) -> Any:
        array = arrays[name]
        return None if array is None else codec.scalar(array[row], name)

    def text(name: str, row: int, default: str) -> str:
        raw = value(name, row)
        return default if raw is None else codec.decode(raw, name)

    requests = []
    for row in range(num_rows):
        stop_words = arrays["stop_words"]
        requests.append(
            build_request(
                settings,
                text=text("text_input", row, ""),
                max_tokens=value("max_tokens", row),
                temperature=value("temperature", row),
                top_p=value("top_p", row),
                top_k=value("top_k", row),
                seed=value("seed", row),
                stop_words=[]
                if stop_words is None
                else [codec.decode(w, "stop_words") for w in stop_words[row].reshape(-1)],
                system_prompt=text("system_prompt", row, ""),
                tenant=text("tenant", row, "public"),
                cache_control=text("cache_control", row, "default"),
                llm=text("llm", row, "auto"),
                stream=bool(value("stream", row)),
            )
        )
    return requests


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
