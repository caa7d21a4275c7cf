"""NVIDIA's perf_analyzer, the real binary, against a running EchoLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from echolm.serving import Endpoints

pytestmark = pytest.mark.timeout(240)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "perf_analyzer.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=220,
        check=False,
    )
    assert "Traceback" not in done.stdout
    return done


def admin(server: Endpoints) -> tuple[str, str]:
    return "--admin-key-file", str(server.data_dir / "admin.key")


def test_unary_and_streamed_load_over_every_protocol_runs_clean(server: Endpoints) -> None:
    done = run(
        *admin(server),
        f"--grpc-url={server.grpc_url}",
        f"--http-url={server.http_address}",
        "--requests=24",
        "--concurrency=4",
        "--max-tokens=8",
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Request count: 24\n") == 3
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["perf_analyzer"]
    assert report["runs"] == [
        {"model": "echolm", "protocol": "grpc", "clean": True},
        {"model": "echolm", "protocol": "http", "clean": True},
        {"model": "echolm_stream", "protocol": "grpc", "clean": True},
    ]


def test_arguments_after_dashes_go_to_perf_analyzer(server: Endpoints, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({"data": [{"text_input": ["hello"], "max_tokens": [2]}]}))
    done = run(
        *admin(server),
        *("--", "-m", "echolm", "-i", "grpc", "-u", server.grpc_url),
        *(f"--input-data={inputs}", "--request-count=6"),
    )
    assert done.returncode == 0, done.stdout
    assert "Request count: 6\n" in done.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_with_the_admin_key_shared_memory_can_be_used(
    server: Endpoints, tmp_path: Path, protocol: str
) -> None:
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({"data": [{"text_input": ["hello"]}]}))
    url = server.grpc_url if protocol == "grpc" else server.http_address
    done = run(
        *admin(server),
        *("--", "-m", "text_embedding", "-i", protocol, "-u", url, "--request-count=6"),
        *(f"--input-data={inputs}", "--shared-memory=system", "--output-shared-memory-size=1536"),
    )
    assert done.returncode == 0, done.stdout
    assert "Request count: 6\n" in done.stdout


def test_a_load_that_fails_is_not_clean(server: Endpoints, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({"data": [{"text_input": ["hello"], "max_tokens": [0]}]}))
    done = run(
        *admin(server),
        *("--", "-m", "echolm", "-i", "grpc", "-u", server.grpc_url),
        *(f"--input-data={inputs}", "--request-count=6"),
    )
    assert done.returncode != 0
    assert "max_tokens: expected 1 to" in done.stdout
