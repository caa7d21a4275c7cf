"""What the engines on GPUs share: options, and the event loop of their worker process.

vLLM and TensorRT-LLM batch in flight by themselves and hand out text through asyncio. They live
in a worker process (:mod:`~echolm.engines.worker`) and not in Triton's, since

- they start processes of their own through ``sys.executable``, which in Triton's stub, which
  embeds Python, is no Python;
- they want another environment than Triton's stub, which may need numpy 1: ``python`` names the
  interpreter that has them;
- when they die, requests fail, but the model stays and a new worker takes over.

::

    WorkerEngine (Triton's model)            worker process
      submit, cancel ── socket ─▶ thread ─▶ event loop: encode, generate, abort ─▶ library
      on_chunk  ◀────── socket ◀─ thread ◀─ one message per turn of the loop
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from echolm.engines import replicated
from echolm.engines.base import (
    FINISH_CANCELLED,
    GenerationChunk,
    GenerationRequest,
    LLMEngine,
    SamplingParams,
)
from echolm.engines.worker import Event, Events, WorkerEngine
from echolm.errors import (
    ConfigurationError,
    ContextLengthError,
    EchoError,
    InvalidRequestError,
    UnavailableError,
)

logger = logging.getLogger("echolm")

_HEALTH_S = 0.5
_ABORT_S = 2.0
"""An aborted request that has not ended by then is given up."""
_WRITE_S = 5.0
_GPUS = re.compile(r"[0-9]+(,[0-9]+)*|")
_Options = TypeVar("_Options", bound="GPUOptions")


@dataclass(frozen=True)
class GPUOptions:
    """Options of every engine on GPUs.

    Attributes:
        model: a folder with a Hugging Face checkpoint, or its name on the hub, in place of the
            model's ``model_dir``.
        tokenizer: the same of another tokenizer; empty: the model's.
        trust_remote_code: whether the checkpoint's own Python code may run.
        gpus: numbers of the GPUs to use, as ``0,1``; empty: all that CUDA shows. GPUs that two
            LLMs share are loaded one after the other, since both measure the memory.
        tensor_parallel_size: GPUs that share each layer.
        pipeline_parallel_size: groups of layers that are on different GPUs.
        dtype: of weights and activations; ``auto``: as the checkpoint says.
        load_format: ``dummy`` takes random weights, to measure speed without any.
        python: interpreter whose environment has the library; empty: that of Triton's models.
        start_timeout_s: time for the model to load, waiting for the GPU included.
        replicas: copies of the engine, each with processes and a KV cache of its own. On several
            GPUs they are spread, ``tensor_parallel_size * pipeline_parallel_size`` GPUs each;
            those on the same GPUs share the share of memory. Worth it where a small LLM's engine
            keeps one CPU core busy and the GPU idle; on one GPU together with NVIDIA's MPS.
        engine_args: more arguments for the library, as a JSON object.
    """

    model: str = ""
    tokenizer: str = ""
    trust_remote_code: bool = False
    gpus: str = ""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    dtype: str = "auto"
    load_format: str = "auto"
    python: str = ""
    start_timeout_s: float = 1_800.0
    replicas: int = 1
    engine_args: str = ""

    def check(self, engine: str) -> None:
        """Raises ConfigurationError for a value that cannot work."""
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "replicas"):
            at_least(engine, name, getattr(self, name), 1)
        if not self.start_timeout_s > 0:
            at_least(engine, "start_timeout_s", self.start_timeout_s, 1)
        if not _GPUS.fullmatch(self.gpus):
            raise ConfigurationError(
                f"engine {engine}: option gpus: expected numbers as 0,1, got {self.gpus!r}"
            )
        if self.gpus and len(set(self.gpus.split(","))) < self.gpus_each:
            raise ConfigurationError(
                f"engine {engine}: option gpus: expected {self.gpus_each} of them "
                f"(tensor_parallel_size times pipeline_parallel_size), got {self.gpus!r}"
            )
        if self.python and not os.access(self.python, os.X_OK):
            raise ConfigurationError(
                f"engine {engine}: option python: expected a Python interpreter, got "
                f"{self.python!r}"
            )

    def more_arguments(self, engine: str) -> dict[str, Any]:
        """``engine_args`` as a dictionary.

        Raises:
            ConfigurationError: it is no JSON object, or names what an option of its own is for.
        """
        if not self.engine_args:
            return {}
        try:
            more = json.loads(self.engine_args)
        except ValueError as error:
            more = error
        if not isinstance(more, dict):
            raise ConfigurationError(
                f"engine {engine}: option engine_args: expected a JSON object, got {more!r}"
            )
        own = sorted(set(more) & {*self.__dataclass_fields__})
        if own:
            raise ConfigurationError(
                f"engine {engine}: option engine_args: expected what has no option of its own, "
                f"got {', '.join(own)}; set that as an option"
            )
        return more

    @property
    def gpus_each(self) -> int:
        """GPUs that one copy takes."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def copies(self: _Options, memory: str) -> list[_Options]:
        """The options of each copy by itself.

        Args:
            memory: name of the option for the share of each GPU's memory.
        """
        if self.replicas == 1:
            return [self]
        gpus = self.gpus.split(",") if self.gpus else []
        places = [
            ",".join(gpus[start : start + self.gpus_each])
            for start in range(0, len(gpus) - self.gpus_each + 1, self.gpus_each)
        ] or [""]
        taken = [places[k % len(places)] for k in range(self.replicas)]
        return [
            replace(
                self, replicas=1, gpus=place, **{memory: getattr(self, memory) / taken.count(place)}
            )
            for place in taken
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the worker process."""
        return {"CUDA_VISIBLE_DEVICES": self.gpus} if self.gpus else {}


def at_least(engine: str, name: str, value: float, least: float) -> None:
    """Raises ConfigurationError if an option is too small."""
    if value < least:
        raise ConfigurationError(
            f"engine {engine}: option {name}: expected at least {least}, got {value}"
        )


def check_model(engine: str, model_dir: Path, options: GPUOptions) -> str:
    """The model that the library is to load: a folder, or a name on the hub.

    Raises:
        ConfigurationError: there is no such folder or no checkpoint in it.
    """
    if options.model and not options.model.startswith(("/", ".", "~")):
        return options.model
    directory = Path(options.model).expanduser() if options.model else model_dir
    if not (directory / "config.json").is_file():
        raise ConfigurationError(
            f"engine {engine}: expected a Hugging Face checkpoint in {directory}, got no "
            "config.json there; name the checkpoint with the parameter `model`, or write a model "
            "repository with `echolm build --help`"
        )
    return str(directory.resolve())


def start(engine: str, model: str, options: GPUOptions, memory: str) -> LLMEngine:
    """Start the worker of an engine, or those of its copies.

    Args:
        engine: its name, and that of its module, whose ``make_backend`` the worker calls.
        model: as of :func:`check_model`.
        memory: name of the option for the share of each GPU's memory.
    """
    return replicated.start([partial(_start, engine, model, one) for one in options.copies(memory)])


def _start(engine: str, model: str, options: GPUOptions) -> WorkerEngine:
    return WorkerEngine(
        engine,
        f"echolm.engines.{engine}:make_backend",
        {"model": model, "options": asdict(options)},
        start_timeout_s=options.start_timeout_s,
        python=options.python,
        environment=options.environment,
    )


def read_model_config(model: str) -> dict[str, Any]:
    """The ``config.json`` of a folder; of a name on the hub an empty one."""
    file = Path(model) / "config.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file}: expected a JSON object, got {type(found).__name__}")
    return found


@contextlib.contextmanager
def loading(gpus: str) -> Iterator[None]:
    """Hold the GPUs for loading: one process at a time on each.

    Both libraries size their KV cache by the memory that is free before and after a trial step.
    What another process takes meanwhile would be counted as theirs.
    """
    base = Path(tempfile.gettempdir()) / f"echolm-gpu-{os.getuid()}"
    with contextlib.ExitStack() as held:
        for gpu in ["all", *sorted(set(gpus.split(",")) - {""})]:
            # Close-on-exec, so the library's own processes do not keep it.
            file = held.enter_context(open(f"{base}-{gpu}.lock", "a"))
            fcntl.flock(file, fcntl.LOCK_SH if gpus and gpu == "all" else fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Output:
    """What a library tells about a request.

    Attributes:
        text: new since the last one.
        num_tokens: generated so far.
        finish_reason: one of ``FINISH_*``, or None if more comes.
        stop_reason: the stop word that ended it.
        cumulative_logprob: of the tokens so far, if asked for.
        cached_tokens: of the prompt, found in the prefix cache; None if not told (yet).
    """

    text: str
    num_tokens: int
    finish_reason: str | None = None
    stop_reason: str | None = None
    cumulative_logprob: float | None = None
    cached_tokens: int | None = None


class AsyncBackend(Protocol):
    """A library with a loaded model. All but :meth:`encode` is called from one event loop."""

    name: str
    context_length: int

    def encode(self, prompt: str) -> Sequence[int]:
        """Token ids of a prompt, special tokens included. Runs in a thread of its own."""

    def generate(self, request: GenerationRequest, prompt: list[int]) -> AsyncIterator[Output]:
        """Generate one answer; unless the request is streaming, one output at the end will do.

        Raises:
            EchoError: fails this request only, as every other exception does while
                :meth:`failure` tells of nothing.
        """

    async def abort(self, request_id: str) -> None:
        """Stop a request soon; unknown ids are ignored."""

    def failure(self) -> str | None:
        """Why the library can answer nothing any more; None while it is well."""

    async def close(self) -> None:
        """Stop the library and its processes."""


class _Active:
    """A request in flight."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self.prompt_tokens = 0
        self.num_tokens = 0
        self.cached_tokens = 0
        self.pieces: list[str] = []


class AsyncWorker:
    """Runs the requests that come over a connection on an :class:`AsyncBackend`."""

    def __init__(self, backend: AsyncBackend, connection: Connection) -> None:
        self._backend = backend
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._active: dict[str, _Active] = {}
        self._aborts: set[asyncio.Task[None]] = set()
        self._events: list[Event] = []
        self._prefix_hits: int | None = None
        self._outbox: queue.SimpleQueue[Events | None] = queue.SimpleQueue()
        # One thread: tokenizers must not be changed by two at a time.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def run(self) -> str | None:
        """Serve until the other side has closed.

        Returns:
            Why the backend has failed; None if it has not.
        """
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        writer = threading.Thread(target=self._write, name="writer", daemon=True)
        for thread in (reader, writer):
            thread.start()
        reason: str | None = None
        while reason is None and not self._ended.done():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ended), _HEALTH_S)
            reason = self._backend.failure()
        self._flush()
        self._outbox.put(None)
        writer.join(_WRITE_S)
        self._encoder.shutdown(wait=False, cancel_futures=True)
        return None if self._ended.done() else reason

    def _read(self) -> None:
        """In a thread: hand what comes to the loop."""
        while True:
            try:
                batch = self._connection.recv()
            except (EOFError, OSError):
                break
            self._loop.call_soon_threadsafe(self._take, batch)
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _write(self) -> None:
        """In a thread: a slow reader must not stop the loop."""
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:  # The reader's thread sees it too.
                return

    def _take(self, batch: list[GenerationRequest | str]) -> None:
        for item in batch:
            if isinstance(item, GenerationRequest):
                active = self._active[item.request_id] = _Active(item)
                active.task = self._loop.create_task(self._serve(active))
            elif (found := self._active.get(item)) is not None:
                self._cancel(found)

    def _cancel(self, active: _Active) -> None:
        active.cancelled = True
        if active.prompt_tokens:  # else it is not with the library yet
            abort = self._loop.create_task(self._abort(active))
            self._aborts.add(abort)
            abort.add_done_callback(self._aborts.discard)

    async def _abort(self, active: _Active) -> None:
        try:
            await self._backend.abort(active.request.request_id)
            await asyncio.wait([active.task] if active.task else [], timeout=_ABORT_S)
        except Exception:
            logger.exception("engine %s: a request could not be aborted", self._backend.name)
        if active.task is not None:
            active.task.cancel()

    async def _serve(self, active: _Active) -> None:
        request = active.request
        try:
            prompt = await self._encode(request)
            active.prompt_tokens = len(prompt)
            last = active.cancelled
            if not last:
                async for output in self._backend.generate(request, prompt):
                    self._tell(active, output)
                    last = output.finish_reason is not None
            if not last:
                raise UnavailableError(f"engine {self._backend.name}: ended without an answer")
            if active.cancelled and request.request_id in self._active:
                self._tell(active, Output("", active.num_tokens, FINISH_CANCELLED))
        except asyncio.CancelledError:
            self._tell(active, Output("", active.num_tokens, FINISH_CANCELLED))
        except EchoError as problem:
            self._end(active, problem)
        except Exception as problem:
            logger.exception("engine %s: a request failed", self._backend.name)
            name = f"engine {self._backend.name}"
            self._end(active, UnavailableError(f"{name}: {type(problem).__name__}"))

    async def _encode(self, request: GenerationRequest) -> list[int]:
        limit, wanted = self._backend.context_length, request.sampling.max_tokens
        if wanted >= limit:  # Don't tokenize for nothing.
            raise _too_long(limit, "at least 1", wanted)
        ids = await self._loop.run_in_executor(self._encoder, self._backend.encode, request.prompt)
        if not ids:
            raise InvalidRequestError.of("text_input", "at least one token", "none")
        if len(ids) + wanted > limit:
            raise _too_long(limit, str(len(ids)), wanted)
        return list(ids)

    def _tell(self, active: _Active, output: Output) -> None:
        active.num_tokens = output.num_tokens
        if output.cached_tokens is not None:
            new = output.cached_tokens - active.cached_tokens
            active.cached_tokens = output.cached_tokens
            self._prefix_hits = (self._prefix_hits or 0) + new
        text = output.text
        if not active.request.streaming:
            active.pieces.append(text)
            text = "".join(active.pieces)
        if output.finish_reason is None and not (active.request.streaming and text):
            return
        chunk = GenerationChunk(
            text=text,
            finish_reason=output.finish_reason,
            num_input_tokens=active.prompt_tokens,
            num_output_tokens=output.num_tokens,
            cumulative_logprob=output.cumulative_logprob,
            stop_reason=output.stop_reason,
        )
        if chunk.is_last:
            self._end(active, chunk)
        else:
            self._emit(active, chunk)

    def _end(self, active: _Active, event: GenerationChunk | Exception) -> None:
        if self._active.pop(active.request.request_id, None) is not None:
            self._emit(active, event)

    def _emit(self, active: _Active, event: GenerationChunk | Exception) -> None:
        if not self._events:  # What comes in this turn of the loop goes as one message.
            self._loop.call_soon(self._flush)
        self._events.append((active.request.request_id, event))

    def _flush(self) -> None:
        events, self._events = self._events, []
        self._outbox.put(Events(events, self._prefix_hits))


def run(
    starting: Awaitable[AsyncBackend], connection: Connection, ready: Callable[[], None]
) -> str | None:
    """The worker's part: start the backend and serve until the other side has closed.

    Args:
        starting: gives the loaded backend, or raises what is wrong with it.
        ready: called when the model is loaded.

    Returns:
        Why the backend has failed; None if it has not.
    """

    async def main() -> str | None:
        backend = await starting
        try:
            ready()
            return await AsyncWorker(backend, connection).run()
        finally:
            await backend.close()

    try:
        import uvloop
    except ImportError:
        return asyncio.run(main())
    reason: str | None = uvloop.run(main())
    return reason


def _too_long(limit: int, prompt: str, max_tokens: int) -> ContextLengthError:
    return ContextLengthError(
        f"text_input and sampling_param_max_tokens: expected at most {limit} tokens together "
        f"(the LLM's context), got {prompt} of prompt and {max_tokens} max_tokens; shorten the "
        "prompt or ask for fewer tokens"
    )


def sampling_arguments(sampling: SamplingParams) -> dict[str, Any]:
    """Arguments that vLLM's and TensorRT-LLM's ``SamplingParams`` have in common."""
    return {
        "max_tokens": sampling.max_tokens,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop": list(sampling.stop) or None,
        # Of 64 bits, both take those that a signed number holds.
        "seed": None if sampling.seed is None else sampling.seed & (2**63 - 1),
    }


def checked_arguments(engine: str, given: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """``engine_args`` that the library knows; ConfigurationError names the others."""
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigurationError(
            f"engine {engine}: option engine_args: expected arguments that the library knows, got "
            f"{', '.join(unknown)}"
        )
    return dict(given)
