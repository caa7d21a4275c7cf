"""Addresses that are none, names that nobody knows, and servers that are not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from commands import ECHOLM, assert_message, run
from echolm.cli.main import main

VERBS = ("ask hi", "ask hi --no-stream", "rate 1 --token t", "prefer t u", "stats")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "url", ["nonsense:port", "ftp://h", "http://", "grpc://h/path", "[::1", "two words", "h..x"]
)
def test_an_address_that_is_none_is_a_usage_error(
    verb: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--url", url]) == 2
    assert_message(capsys.readouterr().err, "url: ", "expected [scheme://]host[:port]", repr(url))


@pytest.mark.parametrize("url", ["nonsense:port", "ftp://h/metrics", "http://"])
def test_a_metrics_page_that_is_none_is_a_usage_error(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", "--metrics-url", url]) == 2
    assert_message(capsys.readouterr().err, "metrics url: expected http[s]://host[:port]/path")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("host", ["127.0.0.1:1", "nobody.invalid"])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_is_a_failure(
    verb: str, host: str, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{scheme}://{host}"
    words = [*verb.split(), "--url", url, "--timeout", "20"]
    if verb == "stats":
        words += ["--metrics-url", f"http://{host}/metrics"]
    assert main(words) == 1
    assert_message(capsys.readouterr().err, f"asked {url}; is the server running? see --url")


def test_a_process_says_only_the_message() -> None:
    done = run(*ECHOLM, "ask", "hi", "--url", "nobody.invalid")
    assert (done.returncode, done.stdout) == (1, "")
    assert_message(done.stderr, "nobody.invalid")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["nobody.invalid", "256.0.0.1", "192.0.2.1"])
def test_a_host_that_serve_cannot_listen_on_is_a_configuration_error(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--host", host, "--data-dir", str(tmp_path / "data")]) == 2
    assert_message(capsys.readouterr().err, "--host")


def test_a_port_in_use_is_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", f"--http-port={port}", "--data-dir", str(tmp_path / "data")]) == 2
    assert_message(capsys.readouterr().err, f"port {port}", "--http-port")
