"""Watches the processes of a running server, mends what has died or hangs, and knows what is up.

A process of the server that ends by itself is started again. A model whose process is gone, which
Triton would serve with errors for ever, is unloaded and loaded anew, while the other models answer.
A process that somebody has stopped (SIGSTOP) is ended, and then counts as gone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from echolm.errors import EchoError, UnavailableError
from echolm.serving.process import GuardedServer
from echolm.serving.restarts import Backoff
from echolm.serving.stubs import is_gone, is_stopped, kill, stubs_of
from echolm.serving.triton_server import TritonServer

_LOOK_S = 0.2
_STOPPED_LOOKS = 3
"""Looks in a row after which a process that is stopped counts as hung."""
_LIVE_EVERY_S = 5.0
_LIVE_S = 2.0
_SILENT_ASKS = 12
"""Unanswered asks in a row after which a Triton that runs counts as hung: in about a minute.

Asks are counted, not seconds: after a pause of the whole machine or container the first one decides
nothing.
"""
_TRITON_STARTS = 5
_JOIN_S = 5.0
"""For all threads together to see that nothing is to be started; a model that loads is not waited
for, since its load ends with Triton."""


@dataclass
class Health:
    """What is known of a process, or of a model.

    Attributes:
        restarts: how often it was started again since it ended or hung.
    """

    up: bool = True
    restarts: int = 0


@dataclass
class Part:
    """A process to keep running.

    Attributes:
        start: starts it and waits until it can be used, or the event is set; EchoError if it fails.
        look: called again and again while it runs.
    """

    server: GuardedServer
    start: Callable[[threading.Event], object]
    backoff: Backoff
    look: Callable[[], object] = lambda: None
    health: Health = field(default_factory=Health)


@dataclass
class _Model:
    """A model that has processes of its own.

    Attributes:
        loaded: when, by the monotonic clock.
        mending: loads it anew.
    """

    processes: list[psutil.Process]
    health: Health = field(default_factory=Health)
    backoff: Backoff = field(default_factory=Backoff)
    loaded: float = field(default_factory=time.monotonic)
    mending: threading.Thread | None = None


class Supervisor:
    """Keeps Triton with its models and the other processes of a server going.

    Args:
        models: directories of Triton's models by name.
        load_s: for all of them to load.
        others: how each other process is started, by name; it is told when to give up.
        report: is told what happens.

    Attributes:
        failure: why the server is given up: Triton ended again and again.
    """

    def __init__(
        self,
        triton: TritonServer,
        models: Mapping[str, Path],
        load_s: float,
        others: Mapping[str, Part],
        report: Callable[[str], None],
    ) -> None:
        self._triton, self._directories, self._load_s = triton, models, load_s
        self._report = report
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._keepers: list[threading.Thread] = []
        self._stopped: Counter[psutil.Process] = Counter()
        self._unanswered = 0
        self._asked = 0.0
        # A model that is loaded anew may be so while Triton, too, is started anew.
        self._finding = threading.Lock()
        backoff = Backoff(most=_TRITON_STARTS)
        self._parts = {"triton": Part(triton, self._start_triton, backoff, self._look), **others}
        self._models = {name: _Model(stubs) for name, stubs in self._found_stubs().items()}
        self.failure: UnavailableError | None = None

    @property
    def processes(self) -> dict[str, Health]:
        """The processes by name: ``triton``, ``milvus``, ``gateway``."""
        return {name: part.health for name, part in self._parts.items()}

    @property
    def models(self) -> dict[str, Health]:
        """The models that have processes of their own, by name."""
        triton = self._parts["triton"].health.up
        return {
            name: replace(model.health, up=triton and model.health.up)
            for name, model in self._models.items()
        }

    @property
    def is_ready(self) -> bool:
        """Whether all models can be used, by the gateway too, and nothing is being stopped.

        Milvus Lite does not count: without it requests are answered without examples.
        """
        needed = [part.health for name, part in self._parts.items() if name != "milvus"]
        up = all(health.up for health in (*needed, *self.models.values()))
        return up and not self._stop.is_set() and self._triton.is_ready()

    @property
    def is_live(self) -> bool:
        """Whether nothing is given up, by a defect either."""
        return self._stop.is_set() or all(keeper.is_alive() for keeper in self._keepers)

    def start(self) -> None:
        """Begin to watch; everything has been started and is ready."""
        self._keepers = [
            self._spawn(name, self._keep, name, part) for name, part in self._parts.items()
        ]

    def stop(self) -> None:
        """Start nothing any more; may be repeated."""
        self._stop.set()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _spawn(self, name: str, work: Callable[..., object], *args: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, name=f"keep-{name}", daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()
        return thread

    # ---- Processes of the server

    def _keep(self, name: str, part: Part) -> None:
        health, server, since = part.health, part.server, time.monotonic()
        while not self._stop.wait(_LOOK_S):
            if (status := server.poll()) is None:
                self._end_if_hung(server)
                if health.up:
                    part.look()
                continue
            pause = part.backoff.after(time.monotonic() - since if health.up else 0.0)
            health.up = False
            ended = f"{name} ended by itself, exit status {status}"
            log = server.log_excerpt()
            if pause is None:
                self.failure = UnavailableError(f"{ended}, again and again; {log}")
                return
            again = f"in {pause:g} s" if pause else "now"
            self._report(f"{ended}; it is started again {again}; {log}")
            if self._stop.wait(pause):
                return
            health.restarts += 1
            try:
                part.start(self._stop)
                since, health.up = time.monotonic(), True
            except (EchoError, OSError) as error:  # a full disk, too, may be emptied
                self._report(str(error))
                server.kill()

    def _end_if_hung(self, server: GuardedServer) -> None:
        if (pid := server.process.pid(timeout_s=0)) is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if self._is_hung(process):
                kill([process])

    def _is_hung(self, process: psutil.Process) -> bool:
        """Whether it has been stopped for some looks."""
        if not is_stopped(process):
            self._stopped.pop(process, None)
            return False
        self._stopped[process] += 1
        return self._stopped[process] >= _STOPPED_LOOKS

    # ---- Triton and its models

    def _start_triton(self, stop: threading.Event) -> None:
        self._triton.start()
        self._triton.wait_ready(self._load_s, stop)
        self._unanswered = 0
        with self._finding:
            found = self._found_stubs()
            for name, model in self._models.items():
                model.processes, model.health.up = found.get(name, []), True

    def _found_stubs(self) -> dict[str, list[psutil.Process]]:
        return stubs_of(self._triton.process.pid() or 0, self._directories)

    def _look(self) -> None:
        self._end_if_silent()
        for name, model in self._models.items():
            if model.mending is not None and model.mending.is_alive():
                continue
            hung = [process for process in model.processes if self._is_hung(process)]
            kill(hung)
            if hung or any(map(is_gone, model.processes)):
                model.health.up = False
                model.mending = self._spawn(name, self._mend, name, model)

    def _end_if_silent(self) -> None:
        now = time.monotonic()
        if now < self._asked + _LIVE_EVERY_S:
            return
        self._asked = now
        self._unanswered = self._unanswered + 1 if self._triton.is_silent(_LIVE_S) else 0
        if self._unanswered >= _SILENT_ASKS:
            self._report(f"Triton was asked {_SILENT_ASKS} times in a row and did not answer")
            self._triton.kill()

    def _mend(self, name: str, model: _Model) -> None:
        """Load a model anew, as often as it takes, unless Triton ends: its next start does."""
        triton, begun = self._triton.process, time.monotonic()

        def is_same() -> bool:
            return triton is self._triton.process and triton.poll() is None

        self._report(f"a process of the model {name} is gone; loading it anew")
        run_s = begun - model.loaded
        while is_same():
            pause, run_s = model.backoff.after(run_s), 0.0
            try:
                # At once, so that no request waits for it. It goes on in the background, and
                # without a process may never end.
                self._triton.unload(name)
                if self._stop.wait(pause) or not is_same():
                    return
                self._triton.load(name)
            except UnavailableError as error:
                self._report(str(error))
                continue
            with self._finding:
                if not is_same():
                    return
                # Those that still finish what they have are not its processes any more.
                found = self._found_stubs().get(name, [])
                model.processes = [process for process in found if process not in model.processes]
                model.loaded = time.monotonic()
                model.health.restarts += 1
                model.health.up = True
            self._report(f"{name} is loaded again, after {model.loaded - begun:.1f} s")
            return
