"""A run of the bench: its own servers, the peers that start, and the rounds."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from echolm.serving.preflight import free_ports
from echolm.serving.serve import prepare_embedder
from echolm.settings import Settings

from echolm_lab.experiments.peers.base import Bench, Peer, Progress, Running
from echolm_lab.experiments.peers.errors import PeerUnavailableError
from echolm_lab.experiments.peers.measure import LLMServer, Load, Round, measure_round, warm_up
from echolm_lab.experiments.peers.processes import ProcessTree, answers, server

_ROOT = Path(__file__).resolve().parents[4]


@contextlib.contextmanager
def bench_servers(
    workers: int, examples: int, admit: bool, progress: Progress
) -> Iterator[tuple[Bench, LLMServer]]:
    """The dummy LLM and the embedder, as long as the context lasts; arguments as in ``Bench``."""
    prepare_embedder(Settings(), progress)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        llm_port, llm = stack.enter_context(_own_server("llm_server", "/calls", work))
        embedding_port, embedding = stack.enter_context(
            _own_server("embedding_server", "/ready", work)
        )
        bench = Bench(
            directory=_ROOT / "build" / "bench" / "peers",
            work=work,
            llm_port=llm_port,
            embedding_port=embedding_port,
            embedding=embedding,
            workers=workers,
            examples=examples,
            admit=admit,
            progress=progress,
        )
        yield bench, LLMServer(llm_port, llm)


@contextlib.contextmanager
def _own_server(module: str, path: str, work: Path) -> Iterator[tuple[int, ProcessTree]]:
    [port] = free_ports("127.0.0.1", 1)
    program = [sys.executable, "-m", f"echolm_lab.experiments.peers.{module}", str(port)]
    environment = {"PYTHONPATH": str(_ROOT / "scripts")}
    up = server(module, program, work, ready=lambda: answers(port, path), environment=environment)
    with up as tree:
        yield port, tree


@contextlib.contextmanager
def started(
    peers: Sequence[Peer], bench: Bench, required: bool
) -> Iterator[tuple[dict[str, Running], dict[str, str]]]:
    """Those that run, and of the others why not, by name.

    Raises:
        PeerUnavailableError: one does not, though it is required.
    """
    running: dict[str, Running] = {}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for peer in peers:
            try:
                peer.install(bench)
                bench.progress(f"starting {peer.name}")
                running[peer.name] = stack.enter_context(peer.running(bench))
            except PeerUnavailableError as error:
                if required:
                    raise
                bench.progress(str(error))
                missing[peer.name] = str(error)
        yield running, missing


async def rounds_of(
    peers: Mapping[str, Running], load: Load, llm: LLMServer, progress: Progress
) -> dict[str, list[Round]]:
    """All rounds of all fronts, in turn.

    Raises:
        PeerUnavailableError: requests fail.
    """
    fronts = [
        (name, connect, running)
        for running in peers.values()
        for name, connect in running.fronts.items()
    ]
    for name, connect, _ in fronts:
        progress(f"{name}: {len(load.history)} requests before the rounds")
        await warm_up(name, connect, load)
    rounds: dict[str, list[Round]] = {name: [] for name, _, _ in fronts}
    for number in range(len(load.saturating)):
        for name, connect, running in fronts:
            one = await measure_round(name, running, connect, load, number, llm)
            rounds[name].append(one)
            rate = one.saturated.run.steady_throughput
            progress(f"round {number + 1}: {name} {rate:.0f} requests/s")
    return rounds
