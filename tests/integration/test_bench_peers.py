"""The bench with peers: its own servers, and clients of EchoLM. Other peers are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from echolm.serving import Endpoints
from echolm_lab.experiments.peers.base import Connect
from echolm_lab.experiments.peers.clients import generate, infer
from echolm_lab.tasks import Workload

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_peers.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    small = ("--rounds=2", "--requests=40", "--history=4", "--rate=50", "--seconds=0.5")
    return subprocess.run(
        [sys.executable, str(SCRIPT), *small, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_load_generator_and_the_dummy_llm_alone_give_a_row() -> None:
    done = run("--peers=direct")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    row = report["peers"]["direct"]
    assert row["requests_per_s"]["mean"] > 0
    assert row["llm_calls"] == {"mean": 1.0, "spread": 0.0}
    assert row["core_ms"]["mean"] == 0.0
    assert "round 2: direct" in done.stderr


def test_a_peer_that_was_asked_for_and_cannot_be_had_is_an_error() -> None:
    done = run("--peers=direct,vllm-sr")

    assert done.returncode == 1
    assert "bench_peers: vllm-sr: its package holds only" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_the_clients_get_echolms_answers(server: Endpoints, protocol: str) -> None:
    port = int(server.http_address.rsplit(":", 1)[1])
    clients: dict[str, Connect] = {
        "grpc": infer(server.grpc_url, "echolm"),
        "http": generate(port, "echolm"),
    }
    [item] = Workload(seed=0).stream(1, seed=1)
    async with clients[protocol]() as client:
        assert (await client.send(item)).text
