"""``echolm serve`` with a real Triton and Milvus Lite, over a model repository of two toys.

What matters here is the life of the processes: what starts, what is refused, and that
nothing stays behind, however it ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from echolm.errors import UnavailableError
from echolm.serving import Endpoints, ServeOptions, running_server, supervisor
from echolm.serving.serve import LocalServer
from echolm.settings.loading import load_settings
from triton_calls import samples

CONFIG_PBTXT = """
backend: "python"
max_batch_size: 0
input [{ name: "text", data_type: TYPE_STRING, dims: [1] }]
output [{ name: "text", data_type: TYPE_STRING, dims: [1] }]
"""

MODEL = """
import json, os, threading, time
import triton_python_backend_utils as pb_utils
from echolm.settings import load_settings

class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0].decode()
            if text == "environment":
                text = json.dumps({{k: v for k, v in os.environ.items()}})
            elif text == "settings":
                settings = load_settings()
                text = json.dumps({{
                    "top_n": settings.retrieval.top_n,
                    "milvus_uri": settings.retrieval.milvus_uri,
                    "signing_key": settings.feedback.signing_key.get_secret_value(),
                }})
            elif text == "sleep":
                time.sleep(60)
            import numpy as np
            tensor = pb_utils.Tensor("text", np.array([text.encode()], dtype=object))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses
"""

pytestmark = pytest.mark.timeout(120)


@dataclass
class Site:
    """A model repository, a configuration and a data directory for one test."""

    root: Path

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def config(self) -> Path:
        return self.root / "echolm.toml"

    def add_model(self, where: str, initialize: str = "pass") -> None:
        directory = self.root / "models" / where
        (directory / "1").mkdir(parents=True)
        (directory / "config.pbtxt").write_text(CONFIG_PBTXT)
        (directory / "1" / "model.py").write_text(MODEL.format(initialize=initialize))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def make_site(root: Path) -> Site:
    site = Site(root)
    site.add_model("core/echo")
    site.add_model("local/toy_llm")
    embedder = root / "embedder"
    embedder.mkdir()
    for file in ("model.onnx", "tokenizer.json"):  # Never read: no model here embeds.
        (embedder / file).write_text("toy")
    spec = {"name": "toy", "dimension": 8, "max_tokens": 32}
    (embedder / "embedder.json").write_text(json.dumps(spec))
    site.config.write_text(
        'data_dir = "data"\n[embedding]\nmodel_dir = "embedder"\n'
        '[[llms]]\nname = "toy_llm"\ncost = 1.0\ntakes_examples = false\n'
    )
    return site


class Served:
    """``echolm serve`` as a process, as a person would start it."""

    def __init__(self, site: Site, *options: str, **environment: str) -> None:
        self.site = site
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "echolm", "serve", f"--config={site.config}"),
                f"--repository-root={site.root / 'models'}",
                *("--http-port=0", "--grpc-port=0", "--metrics-port=0", "--gateway-port=0"),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def wait_ready(self) -> str:
        """The HTTP address that it prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            match = re.match(r"  HTTP +(http://\S+)", line)
            if match:
                return match[1]
        raise AssertionError(f"ended before it was ready: {self.process.communicate()[1]}")

    def stop(self, signum: int = signal.SIGTERM, timeout: float = 30) -> tuple[int, str]:
        self.process.send_signal(signum)
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> tuple[int, str]:
        """Exit status and standard error."""
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors

    def leftovers(self) -> list[str]:
        """Processes, shared memory and sockets of this server that are there now."""
        prefix_file = self.site.data_dir / "run" / "shm-prefix"
        left = [f"process {pid}: {text}" for pid, text in processes_of(self.site.root)]
        with contextlib.suppress(OSError):
            left += [str(p) for p in Path("/dev/shm").glob(prefix_file.read_text() + "*")]
        return left


@contextlib.contextmanager
def serving(site: Site, *options: str, **environment: str) -> Iterator[Served]:
    served = Served(site, *options, **environment)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.process.kill()
            served.process.communicate()


def processes_of(root: Path) -> list[tuple[int, str]]:
    """Processes that name a directory in their command line, but for this one."""
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(root) in text:
                    processes.append((int(entry.name), text))
    return processes


def eventually(holds: Callable[[], bool], timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return holds()


def ask(address: str, text: str, model: str = "echo", timeout: float = 30) -> str:
    request = urllib.request.Request(
        f"{address}/v2/models/{model}/generate",
        data=json.dumps({"text": text}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return str(json.load(response)["text"])


def shm_files(site: Site) -> list[Path]:
    prefix = (site.data_dir / "run" / "shm-prefix").read_text()
    return list(Path("/dev/shm").glob(prefix + "*"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """One server for the tests that leave it as it is."""
    environment: dict[str, Any] = {"ECHOLM_RETRIEVAL__TOP_N": "7"}
    with serving(make_site(tmp_path_factory.mktemp("running")), **environment) as served:
        yield served, served.wait_ready()


def test_models_of_core_and_profile_answer(running: tuple[Served, str]) -> None:
    _, address = running
    assert ask(address, "hello") == "hello"
    assert ask(address, "hello", model="toy_llm") == "hello"


def test_models_read_the_resolved_configuration(running: tuple[Served, str]) -> None:
    served, address = running
    seen = json.loads(ask(address, "settings"))
    assert seen["top_n"] == 7  # from the environment of `echolm serve`
    assert seen["milvus_uri"].startswith("unix:/")
    key_file = served.site.data_dir / "signing.key"
    assert seen["signing_key"] == key_file.read_text().strip()
    assert key_file.stat().st_mode & 0o777 == 0o600
    configuration = served.site.data_dir / "run" / "echolm.toml"
    assert configuration.stat().st_mode & 0o777 == 0o600


def test_models_see_only_the_resolved_configuration_in_the_environment(
    running: tuple[Served, str],
) -> None:
    served, address = running
    environment = json.loads(ask(address, "environment"))
    ours = {name: value for name, value in environment.items() if name.startswith("ECHOLM")}
    run = served.site.data_dir / "run"
    assert ours == {
        "ECHOLM_CONFIG": str(run / "echolm.toml"),
        "ECHOLM_FEEDBACK__SIGNING_KEY_FILE": str(run / "signing.key"),
    }
    assert environment["OMP_NUM_THREADS"] == "1"


def test_milvus_lite_is_reached_by_any_process(running: tuple[Served, str]) -> None:
    _, address = running
    uri = json.loads(ask(address, "settings"))["milvus_uri"]
    assert list_collections(uri) == "[]"


def test_milvus_lite_is_started_again_at_the_same_address(running: tuple[Served, str]) -> None:
    served, address = running
    uri = json.loads(ask(address, "settings"))["milvus_uri"]
    pid_file = served.site.data_dir / "run" / "milvus.pid"
    first = int(pid_file.read_text())
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: pid_file.exists() and pid_file.read_text() not in ("", f"{first}\n"))
    assert eventually(lambda: Path(uri.removeprefix("unix:")).exists())
    assert list_collections(uri) == "[]"


def test_second_start_on_the_same_data_directory_is_refused(running: tuple[Served, str]) -> None:
    served, address = running
    with serving(served.site) as second:
        status, errors = second.wait()
    assert status == 2
    assert str(served.site.data_dir) in errors
    assert f"process {served.process.pid}" in errors
    assert "--data-dir" in errors
    assert ask(address, "still there") == "still there"


def test_taken_port_is_refused_with_the_option_that_changes_it(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(site, f"--grpc-port={port}") as served:
            status, errors = served.wait()
    assert status == 2
    assert f"port {port}" in errors
    assert "--grpc-port" in errors
    assert served.leftovers() == []


def test_missing_llm_is_refused_by_name(site: Site) -> None:
    site.config.write_text(site.config.read_text().replace("toy_llm", "other_llm"))
    with serving(site) as served:
        status, errors = served.wait()
    assert status == 2
    assert "other_llm" in errors
    assert served.leftovers() == []


def test_model_that_cannot_load_stops_the_start_with_its_error(site: Site) -> None:
    site.add_model("core/broken", initialize="raise ValueError('no such tokenizer')")
    with serving(site) as served:
        status, errors = served.wait()
    assert status == 1
    assert "no such tokenizer" in errors
    assert served.leftovers() == []


def test_models_slower_than_the_ready_timeout_stop_the_start(site: Site) -> None:
    site.add_model("core/slow", initialize="time.sleep(60)")
    with serving(site, "--ready-timeout=3") as served:
        status, errors = served.wait()
    assert status == 1
    assert "--ready-timeout" in errors
    assert served.leftovers() == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_ends_everything_with_status_0(site: Site, signum: int) -> None:
    with serving(site) as served:
        ask(served.wait_ready(), "hello")
        assert served.leftovers() != []
        shared_memory = shm_files(site)
        status, errors = served.stop(signum)
    assert status == 0, errors
    assert served.leftovers() == []
    assert [path for path in shared_memory if path.exists()] == []
    for name in ("echolm.toml", "signing.key"):
        assert not (site.data_dir / "run" / name).exists()


def test_stop_signal_while_models_load_ends_everything(site: Site) -> None:
    site.add_model("core/slow", initialize="time.sleep(60)")
    with serving(site) as served:
        assert eventually((site.data_dir / "run" / "tritonserver.pid").exists)
        assert eventually(lambda: shm_files(site) != [])
        started = time.monotonic()
        status, errors = served.stop()
    assert status == 0, errors
    assert time.monotonic() - started < 10
    assert served.leftovers() == []


def test_what_comes_during_a_stop_is_told_that_the_server_is_unavailable(site: Site) -> None:
    with watched(site) as here:
        address, ready = here.endpoints.http_url, here.endpoints.ready_url
        busy = threading.Thread(target=_ignore_errors(lambda: ask(address, "sleep")))
        busy.start()
        time.sleep(1)
        stop = threading.Thread(target=here.server.stop)
        stop.start()
        assert eventually(lambda: status_of(ready) == 503)
        pid_file = site.data_dir / "run" / "tritonserver.pid"
        body = json.dumps({"text": "hello"}).encode()
        seen = set()
        while pid_file.exists():
            seen.add(status_of(f"{address}/v2/models/toy_llm/generate", body))
            time.sleep(0.05)
        stop.join()
        busy.join()
    assert seen <= {0, 200, 503}, seen


def test_second_stop_signal_ends_everything_at_once(site: Site) -> None:
    with serving(site) as served:
        address = served.wait_ready()
        busy = threading.Thread(target=_ignore_errors(lambda: ask(address, "sleep")))
        busy.start()
        time.sleep(1)
        shared_memory = shm_files(site)
        served.process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert served.process.poll() is None  # it waits for the request in flight
        started = time.monotonic()
        status, _ = served.stop(signal.SIGINT)
        busy.join()
    assert status == 128 + signal.SIGINT
    assert time.monotonic() - started < 3
    assert eventually(lambda: served.leftovers() == [], timeout=3)
    assert [path for path in shared_memory if path.exists()] == []


def test_nothing_survives_when_the_parent_is_killed(site: Site) -> None:
    with serving(site) as served:
        served.wait_ready()
        shared_memory = shm_files(site)
        assert shared_memory != []
        socket_file = Path(load_resolved(site)["retrieval"]["milvus_uri"].removeprefix("unix:"))
        assert socket_file.exists()
        served.stop(signal.SIGKILL)
        assert eventually(lambda: served.leftovers() == []), served.leftovers()
        assert [path for path in (*shared_memory, socket_file) if path.exists()] == []
    # And the directory can be used again at once.
    with serving(site) as again:
        assert ask(again.wait_ready(), "hello") == "hello"


@dataclass
class Watched:
    """A server of this process, and what it has reported."""

    server: LocalServer
    endpoints: Endpoints
    reports: list[str]

    def health(self) -> int:
        """Status of the page that says whether it is ready."""
        return status_of(self.endpoints.ready_url)

    def value(self, metric: str, **labels: str) -> float:
        return samples(self.endpoints, metric, **labels)

    def stub(self, model: str) -> int:
        """Process id of a model."""
        supervisor = self.server._supervisor
        assert supervisor is not None
        [process] = supervisor._models[model].processes
        return process.pid


@contextlib.contextmanager
def watched(site: Site) -> Iterator[Watched]:
    reports: list[str] = []
    options = ServeOptions(
        repository_root=site.root / "models",
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        gateway_port=0,
    )
    server = LocalServer(load_settings(site.config), options, progress=reports.append)
    try:
        endpoints = server.start()
        server.supervise()
        yield Watched(server, endpoints, reports)
    finally:
        server.stop()


def status_of(url: str, data: bytes | None = None) -> int:
    """Status of an answer; 0 if there is none."""
    try:
        with urllib.request.urlopen(url, data, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


def answers(address: str, model: str = "echo") -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(address, "hello", model) == "hello"
    return False


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_model_whose_process_is_gone_is_loaded_anew(site: Site, signum: int) -> None:
    gate = site.root / "gate"
    gate.touch()
    wait = f"""
        while not os.path.exists({str(gate)!r}):
            time.sleep(0.05)"""
    site.add_model("core/gated", initialize=wait.strip())
    with watched(site) as here:
        gateway = here.endpoints.gateway_url.removesuffix("/v1")
        assert here.health() == status_of(f"{gateway}/ready") == 200
        assert here.value("echolm_model_up", model="gated") == 1
        gate.unlink()
        os.kill(here.stub("gated"), signum)
        assert eventually(lambda: here.health() == 503)
        assert here.value("echolm_model_up", model="gated") == 0
        assert eventually(lambda: not answers(here.endpoints.http_url, "gated"))
        assert eventually(lambda: status_of(f"{gateway}/ready") == 503)
        # The others go on, and nobody stays behind a model that is away.
        assert all(answers(here.endpoints.http_url, model) for model in ("echo", "toy_llm"))
        assert here.value("echolm_model_up", model="echo") == 1
        gate.touch()
        assert eventually(lambda: here.health() == 200)
        assert answers(here.endpoints.http_url, "gated")
        assert here.value("echolm_model_up", model="gated") == 1
        assert here.value("echolm_model_restarts_total", model="gated") == 1
        assert here.value("echolm_model_restarts_total", model="echo") == 0
        assert here.value("echolm_process_restarts_total", process="triton") == 0


def test_a_triton_that_dies_is_started_again_and_the_others_stay(site: Site) -> None:
    with watched(site) as here:
        gateway = here.endpoints.gateway_url.removesuffix("/v1")
        others = {name: pid for name, pid in here.endpoints.pids.items() if name != "triton"}
        with open(site.data_dir / "logs" / "triton.log", "a") as log:
            log.write("the last words\n")
        os.kill(here.endpoints.pids["triton"], signal.SIGKILL)
        assert eventually(lambda: here.value("echolm_process_up", process="triton") == 0)
        assert here.health() == 503
        assert status_of(f"{gateway}/ready") == 503
        assert is_healthy(gateway)
        assert eventually(lambda: here.health() == 200, timeout=60)
        assert answers(here.endpoints.http_url)
        assert here.value("echolm_process_restarts_total", process="triton") == 1
        assert all(psutil.pid_exists(pid) for pid in others.values())
        [report] = [report for report in here.reports if "triton ended by itself" in report]
        assert "exit status 137" in report
        assert "the last words" in report
    assert processes_of(site.root) == []


def test_a_triton_that_ends_again_and_again_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_TRITON_STARTS", 1)
    pid_file = site.data_dir / "run" / "tritonserver.pid"
    with watched(site) as here:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        assert eventually(lambda: here.value("echolm_process_restarts_total") == 1)
        assert eventually(lambda: here.health() == 200, timeout=60)
        here.server.check()
        os.kill(int(pid_file.read_text()), signal.SIGSTOP)  # it is ended as hung

        def failure() -> str:
            try:
                here.server.check()
            except UnavailableError as error:
                return str(error)
            return ""

        assert eventually(lambda: failure() != "")
        assert "triton ended by itself, exit status 137, again and again" in failure()


def test_only_the_server_itself_loads_and_unloads_models(running: tuple[Served, str]) -> None:
    _, address = running
    for action in ("unload", "load"):
        assert status_of(f"{address}/v2/repository/models/echo/{action}", b"{}") == 403
    assert status_of(f"{address}/v2/repository/index", b"{}") == 403
    assert answers(address)


def test_verbose_shows_the_log(site: Site) -> None:
    with serving(site, "--verbose") as served:
        served.wait_ready()
        _, errors = served.stop()
    assert "Started HTTPService" in errors


def test_running_server_stops_when_the_block_is_left_by_an_error(site: Site) -> None:
    options = ServeOptions(
        repository_root=site.root / "models", http_port=0, grpc_port=0, metrics_port=0
    )
    settings = load_settings(site.config)
    with pytest.raises(ZeroDivisionError), running_server(settings, options) as endpoints:
        assert ask(endpoints.http_url, "hello") == "hello"
        with urllib.request.urlopen(endpoints.metrics_url) as page:
            assert b"nv_inference_count" in page.read()
        assert set(endpoints.pids) == {"triton", "milvus"}
        raise ZeroDivisionError
    assert processes_of(site.root) == []


def list_collections(uri: str) -> str:
    code = f"from pymilvus import MilvusClient; print(MilvusClient({uri!r}).list_collections())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def load_resolved(site: Site) -> dict[str, Any]:
    settings = load_settings(site.data_dir / "run" / "echolm.toml")
    return settings.model_dump()


def _ignore_errors(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with contextlib.suppress(Exception):
            call()

    return run


def gateway_of(served: Served) -> str:
    """The gateway's address without the path, once everything is ready."""
    assert served.process.stdout is not None
    for line in served.process.stdout:
        if match := re.match(r"  OpenAI +(https?://\S+)/v1", line):
            return match[1]
    raise AssertionError(f"ended before it was ready: {served.process.communicate()[1]}")


def is_healthy(address: str) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return bool(urllib.request.urlopen(f"{address}/health", timeout=5).status == 200)
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gateway_that_is_killed_comes_back(site: Site, workers: int) -> None:
    with serving(site, ECHOLM_GATEWAY__WORKERS=str(workers)) as served:
        address = gateway_of(served)
        assert is_healthy(address)
        pid = int((site.data_dir / "run" / "gateway.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not is_healthy(address))
        assert eventually(lambda: is_healthy(address), timeout=60)
        status, errors = served.stop()
    assert status == 0
    assert "gateway ended by itself" in errors
    assert not is_healthy(address)
    assert eventually(lambda: served.leftovers() == [])


def test_the_gateway_can_be_left_out(site: Site) -> None:
    with serving(site, ECHOLM_GATEWAY__ENABLED="false") as served:
        served.wait_ready()
        assert not (site.data_dir / "run" / "gateway.pid").exists()


def test_a_gateway_for_everybody_needs_keys(site: Site) -> None:
    with serving(site, ECHOLM_GATEWAY__HOST="0.0.0.0") as served:
        status, errors = served.wait()
    assert status == 2
    assert "echolm keys add" in errors


def test_the_gateway_speaks_https_with_a_certificate(site: Site) -> None:
    certificate, key = site.root / "cert.pem", site.root / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    make += ["-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext"]
    make += ["subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    files = {"ECHOLM_GATEWAY__TLS_CERTIFICATE": certificate, "ECHOLM_GATEWAY__TLS_KEY": key}
    with serving(site, **{name: str(file) for name, file in files.items()}) as served:
        address = gateway_of(served)
        assert address.startswith("https://")
        trusting = ssl.create_default_context(cafile=certificate)
        with urllib.request.urlopen(f"{address}/health", timeout=5, context=trusting) as answer:
            assert answer.status == 200
        assert not is_healthy(address.replace("https", "http"))
