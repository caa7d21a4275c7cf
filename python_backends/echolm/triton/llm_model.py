"""An LLM behind TensorRT-LLM's LLM-API contract: ``small_llm``, ``large_llm`` and any other.

The model's ``config.pbtxt`` chooses the engine with its parameters: ``engine`` (a name in
:data:`echolm.engines.ENGINES`), ``model_dir`` (absolute, or relative to the version's
directory; by default the engine's name), and every other one in small letters is an option of
the engine.

``execute`` only submits requests to the engine; answers leave from the engine's thread.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.engines import create_engine
from echolm.engines.base import FINISH_CANCELLED, GenerationChunk, gathered
from echolm.engines.request import LLMRequest, is_stop, parse_request
from echolm.errors import EchoError
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.metrics import METRICS_LOST, Metrics
from echolm.triton.responder import Responder
from echolm.triton.runtime import Runtime
from echolm.wiring.internal_calls import llm_call_proofs

logger = logging.getLogger("echolm")

_OUTPUTS = {t.name: t for t in (*contracts.llm("").outputs, *contracts.OPENAI_OUTPUTS)}
_CANCEL_CHECK_S = 0.05
_FLUSH_S = 0.1


@dataclass
class _InFlight:
    """A request and where its answer goes."""

    key: str
    triton_id: str
    request: LLMRequest
    responder: Responder
    started: bool = False
    gone: bool = False


class TritonPythonModel:
    """One LLM. Requests are submitted to the engine, which batches them in flight."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._name: str = config["name"]
        # Triton gives reserved parameters (EXECUTION_ENV_PATH …) in capitals.
        options = {
            key: value["string_value"]
            for key, value in config.get("parameters", {}).items()
            if not key.isupper()
        }
        engine = options.pop("engine", "openvino")
        version_dir = Path(args["model_repository"]) / args["model_version"]
        model_dir = version_dir / options.pop("model_dir", engine)
        try:
            self._engine = create_engine(engine, model_dir, options)
        except EchoError as error:
            raise pb_utils.TritonModelException(f"{self._name}: {error}") from None
        self._proofs = llm_call_proofs(load_settings())
        self._keys = itertools.count(1)
        self._in_flight: dict[str, _InFlight] = {}
        self._lock = threading.Lock()
        self._metrics = Metrics()
        self._count()  # shown from the start on
        self._runtime = Runtime(self._name, _CANCEL_CHECK_S)
        self._runtime.repeat(self._show, _FLUSH_S, METRICS_LOST)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            responder = Responder(request)
            try:
                self._start(request, responder)
            except Exception as problem:
                responder.fail(problem)

    def finalize(self) -> None:
        self._runtime.close()
        self._engine.close()

    def _start(self, request: Any, responder: Responder) -> None:
        if self._proofs is not None:
            self._metrics.check_proof(request, self._proofs, self._name)
        inputs = {
            spec.name: array.reshape(-1).tolist()
            for spec in contracts.ALL_LLM_API_INPUTS
            if (array := codec.read(request, spec.name)) is not None
        }
        triton_id = request.request_id()
        if is_stop(inputs):
            self._stop(triton_id)
            responder.finish()
            return
        # Clients choose request ids and may repeat them, so the engine gets its own.
        key = str(next(self._keys))
        parameters = json.loads(request.parameters() or "{}")
        entry = _InFlight(key, triton_id, parse_request(key, inputs, parameters), responder)
        on_chunk = gathered(
            lambda event: self._on_chunk(entry, event),
            entry.request.stream_interval_s,
            self._runtime.call_later,
        )
        with self._lock:
            self._in_flight[key] = entry
        self._runtime.watch(responder, lambda: self._left(entry))
        try:
            self._engine.submit(entry.request.generation, on_chunk)
        except Exception:
            self._forget(entry)
            raise

    def _left(self, entry: _InFlight) -> None:
        """The client has gone: nobody wants the rest."""
        entry.gone = True
        self._engine.cancel(entry.key)

    def _stop(self, triton_id: str) -> None:
        """Cancel what is in flight under a client's id; an empty id is nobody's."""
        with self._lock:
            entries = list(self._in_flight.values())
        for entry in entries:
            if triton_id and entry.triton_id == triton_id:
                self._engine.cancel(entry.key)

    def _on_chunk(self, entry: _InFlight, event: GenerationChunk | Exception) -> None:
        last = isinstance(event, Exception) or event.is_last
        if isinstance(event, Exception):
            self._count(failed=1)
        elif last:
            cancelled = event.finish_reason == FINISH_CANCELLED
            self._count(event.num_input_tokens, event.num_output_tokens, cancelled)
        if last:
            self._forget(entry)
        try:
            if isinstance(event, Exception):
                entry.responder.fail(event)
            elif not entry.gone:
                entry.responder.send(self._outputs(entry, event), final=last)
            elif last:
                entry.responder.finish()
        except Exception as error:  # The server is stopping.
            logger.debug("%s: a response could not be sent: %s", self._name, error)

    def _forget(self, entry: _InFlight) -> None:
        self._runtime.unwatch(entry.responder)
        with self._lock:
            self._in_flight.pop(entry.key, None)

    def _count(
        self, prompt: int = 0, generated: int = 0, cancelled: bool = False, failed: int = 0
    ) -> None:
        add = self._metrics.add
        add("echolm_llm_prompt_tokens_total", prompt, model=self._name)
        add("echolm_llm_generated_tokens_total", generated, model=self._name)
        add("echolm_llm_cancelled_total", cancelled, model=self._name)
        add("echolm_llm_failed_total", failed, model=self._name)

    def _outputs(self, entry: _InFlight, chunk: GenerationChunk) -> list[Any]:
        request = entry.request
        text = chunk.text
        if request.echo and not entry.started:
            text = request.generation.prompt + text
        entry.started = True
        values: dict[str, Any] = {
            "text_output": text,
            "num_input_tokens": chunk.num_input_tokens,
            "num_output_tokens": chunk.num_output_tokens,
        }
        if request.return_finish_reason:
            values["finish_reason"] = chunk.finish_reason or ""
        if request.return_stop_reason:
            values["stop_reason"] = chunk.stop_reason or ""
        if request.return_cumulative_logprob and chunk.cumulative_logprob is not None:
            values["cumulative_logprob"] = chunk.cumulative_logprob
        tensors = [codec.tensor(_OUTPUTS[name], [value]) for name, value in values.items()]
        if request.return_log_probs:
            cumulative, each = contracts.LOG_PROBS
            if chunk.cumulative_logprob is not None:
                tensors.append(codec.tensor(cumulative, [chunk.cumulative_logprob]))
            tensors.append(codec.tensor(each, chunk.token_logprobs))
        if chunk.logprobs:
            tensors.append(codec.tensor(_OUTPUTS["logprobs"], [orjson.dumps(chunk.logprobs)]))
        return tensors

    def _show(self) -> None:
        """Bring the metrics up to date."""
        stats = self._engine.stats()
        level, total = self._metrics.level, self._metrics.total
        level("echolm_llm_ready", float(stats.ready), model=self._name)
        level("echolm_llm_in_flight", len(self._in_flight), model=self._name)
        total("echolm_llm_prefix_hit_tokens_total", stats.prefix_hit_tokens or 0, model=self._name)
        total("echolm_llm_restarts_total", stats.restarts, model=self._name)
        self._metrics.flush()
