"""Processes of a running server that are killed or stopped at random, under load."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from echolm.learning.event_log import START
from echolm.learning.feedback import RATING
from echolm.serving import Endpoints
from echolm.serving.data_dir import running_configuration
from echolm.serving.stubs import stubs_of
from echolm.settings.loading import load_settings
from echolm.wiring.learning import open_event_log
from echolm_client import Client, EchoLMError, Timeout

SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
_PROCESSES = {"triton": "tritonserver.pid", "milvus": "milvus.pid", "gateway": "gateway.pid"}
_LOOK_S = 0.02
_REQUEST_S = 60.0
_SAMPLE = re.compile(r"(?m)^echolm_(?:process|model)_(up|restarts_total)\{.*\} (\S+)$")


class Traffic:
    """Load from its making to :meth:`stop`: requests, each of whose answers is rated.

    Args:
        scores: a score for each rating, by which it is known again in the log.

    Attributes:
        outcomes: how many requests ended how: answered, degraded, refused, late.
        slowest_s: the longest time that one took.
        acknowledged: scores of the ratings that were.
    """

    def __init__(self, grpc_url: str, clients: int, scores: Iterator[float]) -> None:
        self._scores = scores
        self._client = Client(grpc_url, timeout=_REQUEST_S)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.acknowledged: set[float] = set()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        for n in itertools.count():
            if self._stopping.wait(0.02):
                return
            started = time.monotonic()
            outcome = self._ask(f"client {number} asks for the {n}th time")
            with self._lock:
                self.outcomes[outcome] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def _ask(self, request: str) -> str:
        try:
            answer = self._client.generate(request, max_tokens=8, cache_control="no-store")
        except Timeout:
            return "late"
        except EchoLMError:
            return "refused"
        score = next(self._scores)
        try:
            self._client.rate(answer, score)
            self.acknowledged.add(score)
        except EchoLMError:
            pass  # It was not acknowledged.
        return "degraded" if answer.degraded else "answered"

    def take(self) -> tuple[Counter[str], float]:
        """Outcomes, and the longest time, since the last call."""
        with self._lock:
            taken = self.outcomes, self.slowest_s
            self.outcomes, self.slowest_s = Counter(), 0.0
        return taken

    def stop(self) -> None:
        """Wait for what is still asked."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._client.close()


@dataclass(frozen=True)
class Fault:
    """What was done to a process, and what followed until all was well again.

    Attributes:
        told_s: seconds until the page of metrics or readiness said so; None: never.
        healed_s: seconds until everything was up again; None: not in time.
        outcomes, slowest_s: of the requests meanwhile; see :class:`Traffic`.
    """

    process: str
    action: str
    told_s: float | None
    healed_s: float | None
    outcomes: Mapping[str, int]
    slowest_s: float


@dataclass
class Trial:
    """Faults, and the ratings that were acknowledged and are not in the learning log."""

    faults: list[Fault] = field(default_factory=list)
    ratings: int = 0
    lost_ratings: int = 0


def scores() -> Iterator[float]:
    """Different scores that FP32 has exactly; 2^20 of them."""
    return (k / 2**20 for k in range(2**20))


def logged_scores(data_dir: Path) -> set[float]:
    """Scores of all ratings in the learning log of a running server."""
    file = running_configuration(data_dir)
    if file is None:
        raise RuntimeError(f"{data_dir}: expected that a server runs on it, got none")
    log = open_event_log(load_settings(file))
    try:
        return {e.body["score"] for e in log.read(START, 2**24) if e.kind == RATING}
    finally:
        log.close()


def run(
    endpoints: Endpoints,
    models: Mapping[str, Path],
    count: int,
    clients: int,
    seed: int,
    within_s: float,
    on_fault: Callable[[Fault], object],
) -> Trial:
    """Kill or stop a random process, wait until all is well, and so on.

    Args:
        models: directories of the server's models by name.
        within_s: how long all may take to be well again.
        on_fault: is given each fault when it is over.
    """
    draw, trial = Random(seed), Trial()
    traffic = Traffic(endpoints.grpc_url, clients, scores())
    try:
        for _ in range(count):
            fault = _fault(endpoints, models, draw, traffic, within_s)
            trial.faults.append(fault)
            on_fault(fault)
            if fault.healed_s is None:
                break
    finally:
        traffic.stop()
    trial.ratings = len(traffic.acknowledged)
    trial.lost_ratings = len(traffic.acknowledged - logged_scores(endpoints.data_dir))
    return trial


def _fault(
    endpoints: Endpoints,
    models: Mapping[str, Path],
    draw: Random,
    traffic: Traffic,
    within_s: float,
) -> Fault:
    processes = _processes(endpoints, models)
    name, action = draw.choice(sorted(processes)), draw.choice(sorted(SIGNALS))
    time.sleep(draw.uniform(0.2, 1.5))
    traffic.take()
    before = _state(endpoints)[1]
    os.kill(processes[name], SIGNALS[action])
    started, told_s, healed_s = time.monotonic(), None, None
    while healed_s is None and time.monotonic() < started + within_s:
        time.sleep(_LOOK_S)
        well, restarts = _state(endpoints)
        passed = time.monotonic() - started
        if not well or restarts > before:
            told_s = told_s or passed
        if well and restarts > before:
            healed_s = passed
    outcomes, slowest_s = traffic.take()
    return Fault(name, action, told_s, healed_s, dict(outcomes), slowest_s)


def _processes(endpoints: Endpoints, models: Mapping[str, Path]) -> dict[str, int]:
    """Ids of all processes that are there now, by name."""
    run_dir, found = endpoints.data_dir / "run", {}
    for name, file in _PROCESSES.items():
        if (run_dir / file).exists():
            found[name] = int((run_dir / file).read_text())
    for model, stubs in stubs_of(found["triton"], models).items():
        for n, stub in enumerate(stubs):
            found[f"{model} {n}" if n else model] = stub.pid
    return found


def _state(endpoints: Endpoints) -> tuple[bool, float]:
    """Whether everything is up and ready, and how often something was started again."""
    try:
        with urllib.request.urlopen(endpoints.ready_url, timeout=10):
            well = True
    except urllib.error.HTTPError:
        well = False
    with urllib.request.urlopen(endpoints.metrics_url, timeout=10) as page:
        samples = _SAMPLE.findall(page.read().decode())
    well = well and all(float(value) for kind, value in samples if kind == "up")
    return well, sum(float(value) for kind, value in samples if kind == "restarts_total")
