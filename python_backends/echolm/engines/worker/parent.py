"""The caller's side of an engine's worker process: starts it, sends requests, restarts it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

import echolm
from echolm.engines.base import (
    EngineStats,
    GenerationChunk,
    GenerationRequest,
    OnChunk,
    check_request_id,
    joined,
)
from echolm.engines.worker.messages import Event, Events, Failed, Mode
from echolm.errors import ConfigurationError, UnavailableError

logger = logging.getLogger("echolm")

_MAX_QUICK_RESTARTS = 3
_QUICK_S = 60.0
_STOP_TIMEOUT_S = 10.0
_MAX_JOINED = 2_000
ENV_LIBRARY_PATH = "_ECHOLM_LIBRARY_PATH"
"""Variable with what LD_LIBRARY_PATH was before Triton's own libraries were put in front, which
must not get in the way of CUDA's in a worker."""
_BOOTSTRAP = """
import sys
root = sys.argv.pop(1)
sys.path.insert(0, root)
import echolm
sys.path[:] = [*sys.path[1:], root]
from echolm.engines.worker import child
sys.exit(child.main())
"""
"""The worker imports EchoLM from where this process has it, and all else from its interpreter's
environment: Triton's stub and a checkout have no EchoLM installed, and ``root`` may be the
site-packages of another interpreter."""


class WorkerEngine:
    """:class:`~echolm.engines.base.LLMEngine` over a worker process."""

    def __init__(
        self,
        name: str,
        mode: Mode,
        factory: str,
        arguments: dict[str, Any],
        start_timeout_s: float = 300.0,
        nice: int = 0,
        python: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process and wait until its model is loaded.

        Args:
            name: what messages call the engine.
            factory: ``module:function`` that the worker calls, to make what ``mode`` says.
            arguments: its keyword arguments, which JSON can hold.
            nice: the worker's priority is lower by this.
            python: the worker's interpreter; empty: that of this process.
            environment: variables that the worker gets besides this process's.

        Raises:
            ConfigurationError: the model cannot be loaded.
            UnavailableError: the worker ended or did not get ready in time.
        """
        self._name = name
        root = str(Path(echolm.__file__).parent.parent)
        self._command = [python or _python(), "-c", _BOOTSTRAP, root, f"--nice={nice}"]
        self._command += [f"--mode={mode}", f"--factory={factory}"]
        self._command.append(f"--arguments={json.dumps(arguments)}")
        self._environment = {**os.environ, **(environment or {})}
        if (libraries := self._environment.pop(ENV_LIBRARY_PATH, None)) is not None:
            self._environment["LD_LIBRARY_PATH"] = libraries
        self._children: list[psutil.Process] = []
        self._start_timeout_s = start_timeout_s
        self._lock = threading.Lock()
        self._callbacks: dict[str, OnChunk] = {}
        self._stats = EngineStats(ready=False, in_flight=0)
        self._closed = threading.Event()
        self._spawn()
        self._reader = threading.Thread(target=self._run, name=f"{name}-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> None:
        with self._lock:
            if self._closed.is_set():
                raise UnavailableError(f"engine {self._name}: it is closed")
            if not self._stats.ready:
                raise UnavailableError(f"engine {self._name}: it is starting anew; try again soon")
            check_request_id(request.request_id, self._callbacks)
            self._callbacks[request.request_id] = on_chunk
            self._outbox.put(request)

    def cancel(self, request_id: str) -> None:
        with self._lock:
            if request_id in self._callbacks:
                self._outbox.put(request_id)

    def stats(self) -> EngineStats:
        with self._lock:
            return replace(self._stats, in_flight=len(self._callbacks))

    def close(self) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            self._stats = replace(self._stats, ready=False)
            self._outbox.put(None)
        # The worker ends when its socket does, after the step that it is in.
        self._writer.join(_STOP_TIMEOUT_S)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("engine %s: its process did not end by itself", self._name)
        self._kill(self._process)
        if self._reader is not threading.current_thread():
            self._reader.join(_STOP_TIMEOUT_S)
        self._fail_all(UnavailableError(f"engine {self._name}: it was closed"))

    def _spawn(self, restarts: int = 0) -> None:
        """Start a worker, wait until its model is loaded, and start to write to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*self._command, f"--fd={theirs.fileno()}"],
                pass_fds=[theirs.fileno()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
            )
        connection = Connection(ours.detach())
        try:
            self._wait_ready(process, connection)
        except BaseException:
            connection.close()
            self._kill(process)
            raise
        self._children = _descendants(process.pid)
        self._process, self._connection = process, connection
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._writer = threading.Thread(
            target=_write, args=(self._outbox, connection), name=f"{self._name}-writer", daemon=True
        )
        self._writer.start()
        with self._lock:
            ready = not self._closed.is_set()
            self._stats = EngineStats(ready, in_flight=0, restarts=restarts)
            if not ready:
                self._outbox.put(None)

    def _wait_ready(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while not connection.poll(0.2):
            if self._closed.is_set():
                raise UnavailableError(f"engine {self._name}: it was closed while it started")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"engine {self._name}: expected its model loaded within "
                    f"{self._start_timeout_s:g} s, got nothing"
                )
        message = _receive(connection)
        if message is None:
            raise UnavailableError(
                f"engine {self._name}: its process ended while loading the model, exit status "
                f"{process.wait()}; see the log"
            )
        if isinstance(message, Failed):
            kind = ConfigurationError if message.configuration else UnavailableError
            raise kind(message.message)

    def _kill(self, process: subprocess.Popen[bytes]) -> int:
        """End a worker and what it started, which may hold a GPU; gives its exit status."""
        children = set(self._children)
        if process.returncode is None:  # Once it is waited for, its id may be another's.
            children.update(_descendants(process.pid))
        process.kill()
        status = process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=_STOP_TIMEOUT_S)
        self._children = []
        return status

    def _run(self) -> None:
        """Read until closed; start a new worker when one has failed."""
        started = time.monotonic()
        quick = 0
        while True:
            reason = self._read()
            with self._lock:
                self._stats = replace(self._stats, ready=False)
                self._outbox.put(None)
            self._writer.join()
            self._connection.close()
            if self._closed.is_set():
                return
            # It may hang with its socket closed.
            reason = f"{reason} (exit status {self._kill(self._process)})"
            logger.error("engine %s: %s", self._name, reason)
            self._fail_all(UnavailableError(f"engine {self._name} failed; try again"))
            quick = quick + 1 if time.monotonic() - started < _QUICK_S else 1
            while quick <= _MAX_QUICK_RESTARTS and not self._closed.is_set():
                started = time.monotonic()
                try:
                    self._spawn(self._stats.restarts + 1)
                    break
                except Exception as error:
                    logger.error("engine %s: cannot start anew: %s", self._name, error)
                    quick += 1
                    self._closed.wait(2.0**quick)
            else:
                logger.error("engine %s: no more restarts; reload the model", self._name)
                return
            logger.warning("engine %s: started anew", self._name)

    def _read(self) -> str:
        """Pass events on until the worker is gone; gives the reason."""
        while True:
            message = _receive(self._connection)
            # Under load, what has come meanwhile goes out as one piece per request: sending a
            # piece costs more than generating it.
            events: list[Event] = []
            hits: int | None = None
            while isinstance(message, Events):
                events += message.events
                hits = message.prefix_hit_tokens
                if len(events) >= _MAX_JOINED or not self._connection.poll(0):
                    break
                message = _receive(self._connection)
            if hits is not None:
                with self._lock:
                    self._stats = replace(self._stats, prefix_hit_tokens=hits)
            for request_id, event in join_pieces(events):
                with self._lock:
                    callback = self._callbacks.get(request_id)
                    if isinstance(event, Exception) or event.is_last:
                        self._callbacks.pop(request_id, None)
                if callback is not None:
                    self._call(callback, event)
            if not isinstance(message, Events):
                return "its process ended" if message is None else message.message

    def _fail_all(self, problem: Exception) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks.values():
            self._call(callback, problem)

    def _call(self, callback: OnChunk, event: GenerationChunk | Exception) -> None:
        try:
            callback(event)
        except Exception:
            logger.exception("engine %s: a callback failed", self._name)


def _receive(connection: Connection) -> Events | Failed | None:
    """The worker's next message; None if it is gone."""
    try:
        message: Events | Failed = connection.recv()
    except (EOFError, OSError):
        return None
    return message


def join_pieces(events: list[Event]) -> list[Event]:
    """Make the chunks of each request one; the order of each request's events stays."""
    by_request: dict[str, GenerationChunk | Exception] = {}
    for request_id, event in events:
        before = by_request.get(request_id)
        if isinstance(event, GenerationChunk) and isinstance(before, GenerationChunk):
            event = joined([before, event])
        by_request[request_id] = event
    return list(by_request.items())


def _write(outbox: queue.SimpleQueue[Any], connection: Connection) -> None:
    """Send what is queued, as one message where several wait; None ends it."""
    batch: list[Any] = []
    with contextlib.suppress(OSError):  # The reader sees it too and deals with it.
        while None not in batch:
            batch = [outbox.get()]
            while not outbox.empty():
                batch.append(outbox.get())
            connection.send([item for item in batch if item is not None])
        with socket.socket(fileno=os.dup(connection.fileno())) as half:
            half.shutdown(socket.SHUT_WR)


def _descendants(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, and theirs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _python() -> str:
    """The interpreter; inside Triton's stub, which embeds Python, the one that the stub follows."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    if (python := shutil.which("python3")) is None:
        raise ConfigurationError("engine: expected python3 on PATH, got none")
    return python
