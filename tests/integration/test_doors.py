"""What somebody who reaches Triton's ports, or the machine's files, can and cannot do."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from echolm.internal_calls import SELECTION
from echolm.llm.triton_client import ADMIN_HEADER
from echolm.serving import Endpoints
from echolm.serving.attach import running_settings
from triton_calls import eventually, post, proof, refusal, samples
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.timeout(120)

TENANT = "doors"


def texts(name: str, *values: str) -> Any:
    array = np.array([[value.encode()] for value in values], dtype=np.object_)
    tensor = grpcclient.InferInput(name, list(array.shape), "BYTES")
    return tensor.set_data_from_numpy(array)


def numbers(name: str, *values: float) -> Any:
    array = np.array([values], np.float32)
    return grpcclient.InferInput(name, list(array.shape), "FP32").set_data_from_numpy(array)


def asked(tenant: str = TENANT) -> list[Any]:
    return [texts("text_input", "hello"), texts("tenant", tenant)]


def interaction() -> list[Any]:
    values = {"request": "q", "response": "a", "tenant": TENANT, "system_prompt": ""}
    values |= {"llm": "large_llm", "finish_reason": "stop"}
    made = [texts(name, value) for name, value in values.items()]
    made.append(numbers("embedding", 1.0, *[0.0] * 383))
    return [*made, numbers("quality", 50.0), numbers("help_probability", float("nan"))]


def prompt() -> list[Any]:
    array = np.array([b"hello"], dtype=np.object_)
    return [grpcclient.InferInput("text_input", [1], "BYTES").set_data_from_numpy(array)]


INNER = {
    "selection": (SELECTION, asked),
    "router": (SELECTION, asked),
    "retriever": (SELECTION, lambda: [*asked(), numbers("embedding", 1.0, *[0.0] * 383)]),
    "example_manager": ("example_manager", interaction),
}


@pytest.fixture
def grpc(server: Endpoints) -> Any:
    client = grpcclient.InferenceServerClient(server.grpc_url)
    yield client
    client.close()


@pytest.mark.parametrize("model", INNER)
def test_whoever_passes_the_router_by_is_refused_and_counted(
    server: Endpoints, grpc: Any, model: str
) -> None:
    purpose, make = INNER[model]
    other = {"echolm_proof": next(iter(proof(server, purpose, asked("another")).values()))}
    before = samples(server, "echolm_refused_calls_total", purpose=purpose)
    for sent in (None, {"echolm_proof": "1.0"}, {"echolm_proof": 7}, other):
        said = refusal(partial(grpc.infer, model, make(), parameters=sent))
        assert "expected a call by EchoLM itself" in said
        assert "call the model `echolm`" in said
    count = "echolm_refused_calls_total"
    assert eventually(lambda: samples(server, count, purpose=purpose) >= before + 4)


def test_an_llm_answers_echolm_only(server: Endpoints) -> None:
    code, said = post(server, "small_llm/generate", {"text_input": "hello"})
    assert (code, "expected a call by EchoLM itself" in said) == (400, True)
    code, _ = post(server, "echolm/generate", {"text_input": "hello", "llm": "small_llm"})
    assert code == 200


def test_what_is_signed_is_checked_all_the_same(server: Endpoints, grpc: Any) -> None:
    made = interaction()
    signed = proof(server, "example_manager", made, None)
    result = grpc.infer("example_manager", made, parameters=signed)
    assert (result.as_numpy("admitted").item(), result.as_numpy("reason").item()) == (
        False,
        b"quality",
    )


def test_triton_s_levers_want_the_admin_key(server: Endpoints, grpc: Any) -> None:
    key = running_settings(server.data_dir).triton.admin_key.get_secret_value()
    assert (server.data_dir / "admin.key").read_text().strip() == key
    http = httpclient.InferenceServerClient(server.http_address)
    with pytest.raises(InferenceServerException, match="restricted"):
        grpc.register_system_shared_memory("mine", "/echolm-any", 64)
    for call in (
        grpc.get_model_repository_index,
        grpc.get_log_settings,
        grpc.get_trace_settings,
        lambda: grpc.get_model_config("small_llm"),
        lambda: grpc.unload_model("router"),
    ):
        assert "restricted" in refusal(call)
    for path in ("v2/logging", "v2/trace/setting", "v2/models/router/stats", "v2/repository/index"):
        assert _status(server, path, "") == 403
    http.close()
    for path in ("v2/health/ready", "v2/models/echolm", "v2/models/echolm/ready"):
        assert _status(server, path, "") == 200
    assert _status(server, "v2/logging", key) == 200
    admin = {f"triton-grpc-protocol-{ADMIN_HEADER}": key}
    assert grpc.get_log_settings(headers=admin).settings


def _status(server: Endpoints, path: str, key: str) -> int:
    headers = {ADMIN_HEADER: key} if key else {}
    body = b"" if path.endswith("index") else None
    request = urllib.request.Request(f"{server.http_url}/{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_else_reads_the_server_s_files(server: Endpoints) -> None:
    milvus = running_settings(server.data_dir).retrieval.milvus_uri.removeprefix("unix:")
    shared = [path for path in Path("/dev/shm").glob("echolm-*") if _is_ours(server, path)]
    assert shared
    for path in (server.data_dir, *server.data_dir.rglob("*"), Path(milvus), *shared):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0, path


def _is_ours(server: Endpoints, path: Path) -> bool:
    prefix = (server.data_dir / "run" / "shm-prefix").read_text()
    # Or two calls of Triton's could have it mapped by name.
    assert len(prefix) > 32
    return path.name.startswith(prefix) and os.access(path, os.R_OK)
