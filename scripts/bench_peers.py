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
import json
import os
import sys

import uvloop
from echolm_lab.experiments.arguments import at_least_one
from echolm_lab.experiments.peers.base import Peer
from echolm_lab.experiments.peers.catalogue import PEERS
from echolm_lab.experiments.peers.errors import PeerUnavailableError
from echolm_lab.experiments.peers.measure import load_of, results_of
from echolm_lab.experiments.peers.session import bench_servers, rounds_of, started
from echolm_lab.experiments.peers.table import print_peers
from echolm_lab.report.check import jsonable
from echolm_lab.report.environment import host
from rich.console import Console


def chosen(text: str) -> list[Peer]:
    """Peers by their names, with commas between them."""
    by_name = {peer.name: peer for peer in PEERS}
    names = text.split(",")
    if unknown := [name for name in names if name not in by_name]:
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(by_name)}, got {', '.join(unknown)}"
        )
    return [by_name[name] for name in names]


def positive(text: str) -> float:
    """A number above 0."""
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = ", ".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", type=chosen, help=f"with commas, of {names}; default: all")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of each peer, in turn")
    parser.add_argument("--requests", type=at_least_one, default=1_000, help="of a round")
    parser.add_argument("--concurrency", type=at_least_one, default=16, help="requests in flight")
    parser.add_argument("--rate", type=positive, default=20.0, help="arrivals a second")
    parser.add_argument("--seconds", type=positive, default=20.0, help="of arrivals, in a round")
    parser.add_argument("--history", type=at_least_one, default=500, help="requests before")
    parser.add_argument("--repeats", type=float, default=0.1, help="share of exact repeats")
    parser.add_argument("--examples", type=at_least_one, default=100_000, help="in EchoLM's store")
    parser.add_argument("--admit", action="store_true", help="EchoLM admits answers, too")
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=os.cpu_count(),
        help="processes of LiteLLM's proxy; default: the number of cores",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    progress = Console(stderr=True, markup=False, highlight=False).print
    peers = options.peers or PEERS
    load = load_of(
        rounds=options.rounds,
        requests=options.requests,
        history=options.history,
        concurrency=options.concurrency,
        rate=options.rate,
        seconds=options.seconds,
        repeats=options.repeats,
        seed=options.seed,
    )
    servers = bench_servers(options.workers, options.examples, options.admit, progress)
    try:
        with (
            servers as (bench, llm),
            started(peers, bench, required=options.peers is not None) as (running, missing),
        ):
            rounds = uvloop.run(rounds_of(running, load, llm, progress))
    except PeerUnavailableError as error:
        progress(f"bench_peers: {error}")
        return 1
    results = results_of(peers, running, missing, rounds, options.rate)
    print_peers(Console(), results, options.concurrency, options.rate)
    used = {name: value for name, value in vars(options).items() if name != "peers"}
    print(json.dumps(jsonable({**used, "host": host(), "peers": results})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
