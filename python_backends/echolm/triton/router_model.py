"""The model ``router``: which LLM answers, and what is learnt from it.

It is the last step of the ``selection`` ensemble, which never fails a request: what is wrong with
one is in its plan. The front door also calls it alone, with the reports of what it did. Plans
and reports meet in one process, so that the state of a request need not travel; one process is
enough, since the front door asks for the plans of many requests at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from echolm import contracts
from echolm.errors import EchoError, InvalidRequestError, UnavailableError
from echolm.internal_calls import SELECTION
from echolm.llm.optional_inputs import optional_inputs
from echolm.llm.triton_client import TritonLLMClient, remote_error
from echolm.primitives import STORED, Completion, Plan, Report, Request, Retrieved
from echolm.retrieval.packed import unpack
from echolm.router.packed import PlanPacker, unpack_report
from echolm.router.validation import build_request
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.bls import BLSExampleManager, BLSTextEmbedder
from echolm.triton.learning import follow_log
from echolm.triton.metrics import RouterMetrics, process_label
from echolm.triton.responder import Responder
from echolm.triton.rows import error_text
from echolm.triton.runtime import Runtime
from echolm.wiring.internal_calls import build_call_proofs
from echolm.wiring.llms import build_callees, build_llm_clients
from echolm.wiring.routing import build_router, open_load_table

_SHOW_LOAD_EVERY_S = 0.2
_FORGET_EVERY_S = 60.0
_SIGNATURE_S = 0.5
"""For which a batch waits to learn what LLMs take."""
_NOTHING = Completion("", "")

_Row = tuple[Request, Retrieved] | InvalidRequestError


class TritonPythonModel:
    """Answers requests without ever blocking its instance."""

    def initialize(self, args: dict[str, str]) -> None:
        self._name = process_label(args)
        self._settings = settings = load_settings()
        self._runtime = Runtime(args["model_name"])
        self._metrics = RouterMetrics(self._runtime, settings.strongest_llm.name)
        self._load = open_load_table(settings)
        self._clients = clients = build_llm_clients(settings)
        self._callees = build_callees(settings, clients)
        self._packer = PlanPacker(settings)
        self._proofs = proofs = build_call_proofs(settings)
        router = build_router(
            settings,
            clients=clients,
            load=self._load,
            embedder=BLSTextEmbedder(settings.retrieval.timeout_s),
            sink=BLSExampleManager(proofs),
            metrics=self._metrics,
            judging_metrics=self._metrics,
            reuse_metrics=self._metrics,
        )
        self._service, self._bias, self._warm_up = router.service, router.bias, router.warm_up
        follow_log(router.learner, self._runtime, self._metrics, self._name)
        self._runtime.spawn(self._show_state())
        self._runtime.spawn(self._forget_lost())
        self._runtime.spawn(router.usage.run())
        if router.comparisons is not None:
            self._runtime.spawn(router.comparisons.run())

    def execute(self, requests: list[Any]) -> None:
        asked: list[tuple[Responder, list[_Row]]] = []
        for request in requests:
            responder = Responder(request)
            try:
                self._metrics.check_proof(request, self._proofs, SELECTION)
                reports = codec.read(request, contracts.REPORT.name)
                if reports is None:
                    asked.append((responder, self._read(request)))
                else:
                    read = [unpack_report(packed) for packed in reports.reshape(-1)]
                    self._runtime.spawn(self._take(read, responder))
            except Exception as problem:
                responder.fail(problem)
        if asked:
            self._runtime.spawn(self._plan(asked))

    def _read(self, request: Any) -> list[_Row]:
        rows = codec.read_each(request, contracts.ROUTER.inputs)
        if not rows:
            raise InvalidRequestError.of("batch", "one row or more", "none")
        return [self._row(row) for row in rows]

    def _row(self, row: dict[str, Any] | InvalidRequestError) -> _Row:
        try:
            if isinstance(row, InvalidRequestError):
                raise row
            degraded, packed = row.pop("retrieval_degraded", ""), row.pop("retrieved", None)
            embedding = row.pop("embedding", None)
            request = build_request(self._settings, text=row.pop("text_input", None), **row)
        except InvalidRequestError as error:
            self._metrics.failed("invalid")
            return error
        if packed is None:
            return request, Retrieved(degraded=degraded)
        return request, replace(unpack(packed), embedding=embedding)

    def _check(self, row: _Row) -> _Row:
        """The row, or why no LLM can take it."""
        if isinstance(row, InvalidRequestError):
            return row
        request, _ = row
        try:
            self._service.check(request)
        except InvalidRequestError as error:
            self._metrics.failed("invalid")
            return error
        return row

    async def _know_llms(self) -> None:
        """Ask LLMs what they take, unless they have said; one that does not answer may be tried."""
        clients = [c for c in self._clients.values() if isinstance(c, TritonLLMClient)]
        unknown = [client.signature() for client in clients if not client.is_known]
        if unknown:
            asked = asyncio.gather(*unknown, return_exceptions=True)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asked, _SIGNATURE_S)

    async def _plan(self, asked: Sequence[tuple[Responder, list[_Row]]]) -> None:
        try:
            if any(_asks_for_more(row) for _, rows in asked for row in rows):
                await self._know_llms()
            asked = [(to, [self._check(row) for row in rows]) for to, rows in asked]
            good = [row for _, rows in asked for row in rows if not isinstance(row, Exception)]
            plans = iter(
                [
                    self._refuse(plan) if isinstance(plan, Exception) else await self._pack(plan)
                    for plan in self._service.plan(good)
                ]
            )
            for responder, rows in asked:
                _send(
                    responder,
                    [self._refuse(r) if isinstance(r, Exception) else next(plans) for r in rows],
                )
        except Exception as problem:
            for responder, _ in asked:
                responder.fail(problem)

    async def _take(self, reports: Sequence[Report], responder: Responder) -> None:
        try:
            _send(responder, [await self._take_one(report) for report in reports])
        except Exception as problem:
            responder.fail(problem)

    async def _take_one(self, report: Report) -> bytes:
        """The next plan, packed, after an LLM has failed; else empty."""
        if report.kind == "failed":
            return await self._instead(report)
        if report.kind == "answered":
            self._service.answered(report)
        else:
            self._service.ended(report)
        return b""

    async def _instead(self, report: Report) -> bytes:
        """What to do after an LLM has failed, packed."""
        for known in (self._callees.get(report.llm), self._clients.get(report.llm)):
            if isinstance(known, TritonLLMClient):
                known.forget_signature()
        error: EchoError
        if report.reason == "timeout":
            limit = self._settings.limits.request_timeout_s
            error = UnavailableError(f"{report.llm}: no answer in {limit:g} s")
        else:
            error = remote_error(report.llm, report.reason, report.refused)
        try:
            plan = self._service.failed(report, error)
        except EchoError as refusal:
            return self._refuse(refusal)
        return await self._pack(plan)

    async def _pack(self, plan: Plan) -> bytes:
        if plan.llm == STORED:
            return self._packer.pack(plan, None)
        try:
            callee = self._callees[plan.llm]
            call = await callee.call(plan.prompt, plan.sampling, plan.stream)
        except (UnavailableError, InvalidRequestError) as error:
            refused = isinstance(error, InvalidRequestError)
            report = Report(
                "failed", plan.request_id, plan.llm, _NOTHING, refused=refused, reason=str(error)
            )
            return await self._instead(report)
        return self._packer.pack(plan, call)

    def _refuse(self, error: Exception) -> bytes:
        return self._packer.refusal(*error_text(error))

    async def _forget_lost(self) -> None:
        """Close plans whose reports the front door could not send."""
        llms, limits = len(self._settings.llms), self._settings.limits
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            self._service.forget(llms * limits.request_timeout_s + _FORGET_EVERY_S)

    async def _show_state(self) -> None:
        """Export the load that the router sees, and which LLMs it may draw."""
        level = self._metrics.level
        while True:
            loads = self._bias.loads()
            for llm, bias in self._bias().items():
                level("echolm_load_bias", bias, llm=llm, model=self._name)
                level("echolm_load", loads[llm], llm=llm, model=self._name)
                # This process only: the sum over the routers is what the LLM has in flight.
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


def _asks_for_more(row: _Row) -> bool:
    """Whether the row needs an LLM that can take more than the usual inputs."""
    return not isinstance(row, Exception) and bool(optional_inputs(row[0].sampling))


def _send(responder: Responder, plans: Sequence[bytes]) -> None:
    responder.send([codec.tensor(contracts.PLAN, plans, (len(plans), 1))], final=True)
