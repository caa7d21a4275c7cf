#!/usr/bin/env python3
"""Measure EchoLM's front door beside peers: LiteLLM's proxy, cache and routers, and GPTCache.

Each peer is installed in an environment of its own (build/bench/peers), started in front of one
dummy LLM that answers at once, and sent the same requests: in each round all peers in turn, first
with a fixed number in flight, then at random arrivals of a fixed rate, the same for all. All of it
is on this machine: peer, dummy LLM and load generator share its cores. The store of examples is
kept in build/bench. Prints a table and ends with one JSON line; a peer that cannot be had is a row
that says why, and an error if --peers names it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvloop
from echolm.serving.preflight import free_ports
from echolm_lab.experiments.arguments import at_least_one
from echolm_lab.experiments.peers.base import Bench, Peer, PeerUnavailableError, Running
from echolm_lab.experiments.peers.catalogue import PEERS
from echolm_lab.experiments.peers.measure import (
    LLMServer,
    Load,
    Round,
    figures_of,
    load_of,
    measure_round,
    warm_up,
)
from echolm_lab.experiments.peers.processes import ProcessTree, answers, server
from echolm_lab.experiments.peers.table import print_peers
from echolm_lab.report.check import jsonable
from echolm_lab.report.environment import host
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


def chosen(text: str) -> list[Peer]:
    """Peers by their names, with commas between them."""
    by_name = {peer.name: peer for peer in PEERS}
    names = text.split(",")
    if unknown := [name for name in names if name not in by_name]:
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(by_name)}, got {', '.join(unknown)}"
        )
    return [by_name[name] for name in names]


@contextlib.contextmanager
def own_server(module: str, path: str, work: Path) -> Iterator[tuple[int, ProcessTree]]:
    """A server of the bench itself: its port and its process."""
    [port] = free_ports("127.0.0.1", 1)
    program = [sys.executable, "-m", f"echolm_lab.experiments.peers.{module}", str(port)]
    environment = {"PYTHONPATH": str(ROOT / "scripts")}
    up = server(
        module, program, work, ready=lambda: answers(port, path), environment=environment
    )
    with up as tree:
        yield port, tree


async def rounds_of(
    peers: dict[str, Running], load: Load, llm: LLMServer, console: Console
) -> dict[str, list[Round]]:
    """All rounds of all fronts, in turn."""
    fronts = [
        (name, connect, running)
        for running in peers.values()
        for name, connect in running.fronts.items()
    ]
    for name, connect, _ in fronts:
        console.print(f"{name}: {len(load.history)} requests before the rounds")
        await warm_up(connect, load)
    rounds: dict[str, list[Round]] = {name: [] for name, _, _ in fronts}
    for number in range(len(load.saturating)):
        for name, connect, running in fronts:
            one = await measure_round(running, connect, load, number, llm)
            rounds[name].append(one)
            run = one.saturated.run
            console.print(f"round {number + 1}: {name} {run.steady_throughput:.0f} requests/s")
    return rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = ",".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", type=chosen, default=None, help=f"some of {names}; all")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of each peer, in turn")
    parser.add_argument("--requests", type=at_least_one, default=1_000, help="of a round")
    parser.add_argument("--concurrency", type=at_least_one, default=16)
    parser.add_argument("--rate", type=float, default=20.0, help="arrivals a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals, in a round")
    parser.add_argument("--history", type=at_least_one, default=500, help="requests before")
    parser.add_argument("--repeats", type=float, default=0.1, help="share of exact repeats")
    parser.add_argument("--examples", type=at_least_one, default=100_000, help="in EchoLM's store")
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=os.cpu_count(),
        help="processes of LiteLLM's proxy; as many as there are cores",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(stderr=True)
    load = load_of(
        options.rounds,
        options.requests,
        options.history,
        options.concurrency,
        options.rate,
        options.seconds,
        options.repeats,
        options.seed,
    )
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        llm_port, llm_tree = stack.enter_context(own_server("llm_server", "/calls", work))
        embedding = stack.enter_context(own_server("embedding_server", "/ready", work))
        bench = Bench(
            directory=ROOT / "build" / "bench" / "peers",
            work=work,
            llm_port=llm_port,
            embedding_port=embedding[0],
            embedding=embedding[1],
            workers=options.workers,
            examples=options.examples,
            progress=console.print,
        )
        running: dict[str, Running] = {}
        for peer in options.peers or PEERS:
            try:
                peer.install(bench)
                console.print(f"starting {peer.name}")
                running[peer.name] = stack.enter_context(peer.running(bench))
            except PeerUnavailableError as error:
                if options.peers:
                    console.print(f"bench_peers: {error}", style="red", markup=False)
                    return 1
                missing[peer.name] = str(error)
        llm = LLMServer(llm_port, llm_tree)
        rounds = uvloop.run(rounds_of(running, load, llm, console))
    results = {}
    for peer in options.peers or PEERS:
        facts = {"version": peer.version, "licence": peer.licence, "does": peer.does}
        if peer.name in missing:
            results[peer.name] = {**facts, "missing": missing[peer.name]}
            continue
        for front in running[peer.name].fronts:
            figures = figures_of(rounds[front], options.rate)
            if running[peer.name].own_llm:
                del figures["llm_calls"], figures["llm_core_ms"]
            results[front] = {**facts, **figures}
    print_peers(Console(), results, options.concurrency, options.rate)
    report = {
        name: getattr(options, name)
        for name in ("rounds", "requests", "concurrency", "rate", "seconds", "history", "repeats")
        + ("examples", "workers", "seed")
    }
    print(json.dumps(jsonable({**report, "host": host(), "peers": results})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
