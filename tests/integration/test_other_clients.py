"""Other people's clients, as they are, against a running EchoLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import client_installation
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from client_installation import TOKENIZER
from echolm.llm.triton_client import ADMIN_HEADER
from echolm.serving import Endpoints
from echolm_lab.experiments import perf_analyzer
from triton_calls import Caller, text
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor, shared_memory

# The first use installs them.
pytestmark = pytest.mark.timeout(600)

REQUEST = "shrink our energy cache cluster at bomkum-x80"
DIMENSION = 384


@pytest.fixture(scope="module")
def expected(server: Endpoints) -> str:
    """What the large LLM answers to the request."""
    options = {"llm": "large_llm", "max_tokens": 200, "cache_control": "no-cache"}
    answer = Caller(server).ask(REQUEST, **options)
    assert text(answer, "finish_reason") == "stop"
    return text(answer, "text_output")


def calls(program: str, arguments: list[str], directory: Path) -> dict[str, Any]:
    """What came of the calls of a program in ``other_clients``."""
    script = client_installation.PROGRAMS / program
    done = client_installation.run("python", [script, *arguments, REQUEST], directory)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def requests_of(export: Path) -> list[Any]:
    """The measured requests in an export of perf_analyzer."""
    [experiment] = perf_analyzer.read_export(export)["experiments"]
    requests: list[Any] = experiment["requests"]
    return requests


# LiteLLM


@pytest.fixture(scope="module")
def litellm(server: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = [server.gateway_url, server.http_address]
    return calls("litellm_calls.py", arguments, tmp_path_factory.mktemp("litellm"))


@pytest.mark.parametrize("provider", ["openai", "vllm"])
def test_litellm_completes_and_embeds(
    litellm: dict[str, Any], provider: str, expected: str
) -> None:
    whole, stream = litellm[provider], litellm[f"{provider} stream"]
    assert (whole["texts"], whole["ends"]) == ([expected], ["stop"])
    assert whole["usage"]["completion_tokens"] > 10
    assert (stream["texts"], stream["ends"]) == ([expected], ["stop"])
    assert stream["pieces"] > 2
    assert litellm[f"{provider} embeddings"] == {"lengths": [DIMENSION] * 2}


def test_litellm_counts_a_streams_tokens_where_it_asks_for_them(litellm: dict[str, Any]) -> None:
    [usage] = litellm["openai stream"]["usage"]
    whole = litellm["openai"]["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == whole[name]
    assert litellm["openai stream without options"]["usage"] == []


def test_litellm_in_asyncio(litellm: dict[str, Any], expected: str) -> None:
    assert litellm["openai async"]["texts"] == [expected, expected]


def test_litellm_with_its_options(litellm: dict[str, Any]) -> None:
    answer = litellm["openai options"]
    assert len(answer["texts"]) == 2 and all(answer["texts"])
    assert answer["usage"]["completion_tokens"] <= 16
    assert litellm["openai text"]["texts"][0]


def test_litellm_knows_errors(litellm: dict[str, Any]) -> None:
    assert litellm["unknown model"]["error"] == "NotFoundError"
    assert litellm["too long"]["error"] == "ContextWindowExceededError"
    assert litellm["triton refusal"]["error"] == "BadRequestError"


def test_litellms_triton_provider(litellm: dict[str, Any], expected: str) -> None:
    for name in ("triton", "triton of the stream's model", "triton stream"):
        assert litellm[name]["texts"] == [expected], name
    assert litellm["triton stream"]["pieces"] > 2
    assert litellm["triton default"]["texts"] == [expected]  # with its 2,000 max_tokens


# LangChain


@pytest.fixture(scope="module")
def langchain(server: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("langchain")
    return calls("langchain_calls.py", [server.gateway_url], directory)


def test_langchain_invokes_streams_and_batches(langchain: dict[str, Any], expected: str) -> None:
    for name in ("invoke", "stream", "stream with usage"):
        assert langchain[name]["texts"] == [expected], name
        assert langchain[name]["end"] == "stop"
    assert langchain["stream"]["pieces"] > 2
    usage = langchain["invoke"]["usage"]
    assert usage["output_tokens"] > 10
    assert langchain["stream with usage"]["usage"] == usage
    assert langchain["async"]["texts"] == [expected] * 2
    assert langchain["batch"]["texts"] == [expected] * 4


def test_langchain_in_its_other_forms(langchain: dict[str, Any]) -> None:
    more = langchain["conversation"]["usage"]["input_tokens"]
    assert more > langchain["invoke"]["usage"]["input_tokens"] + 10
    assert langchain["options"]["texts"][0]
    assert langchain["text"]["texts"][0]
    assert langchain["embeddings"] == {"lengths": [DIMENSION] * 3}


def test_langchain_knows_errors(langchain: dict[str, Any]) -> None:
    assert langchain["too long"]["error"] == "OpenAIContextOverflowError"
    refused = langchain["structured output"]
    assert refused["error"] == "OpenAIInvalidRequestError"
    assert "response_format: expected nothing, since large_llm cannot" in refused["message"]


# NVIDIA's load generators


def test_aiperf_streams_a_chat(server: Endpoints, tmp_path: Path) -> None:
    client_installation.run(
        "aiperf",
        ["profile", "--model=echolm", "--endpoint-type=chat", "--streaming"]
        + [f"--url={server.gateway_url.removesuffix('/v1')}", f"--tokenizer={TOKENIZER}"]
        + ["--request-count=12", "--concurrency=3", "--isl=40", "--osl=12", "--random-seed=1"]
        + [
            "--extra-inputs=ignore_eos:true",
            "--extra-inputs=cache_control:no-cache",
            "--ui=none",
            f"--output-artifact-dir={tmp_path}",
        ],
        tmp_path,
    )
    report = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == 12
    assert report["error_summary"] == []
    tokens = report["usage_completion_tokens"]
    assert (tokens["min"], tokens["max"]) == (12, 12)
    assert report["output_sequence_length"]["avg"] == pytest.approx(12, abs=2)
    assert report["time_to_first_token"]["avg"] > 0


def admin_key_file(server: Endpoints) -> Path:
    """Holds what Triton wants for statistics, configurations and shared memory."""
    return server.data_dir / "admin.key"


def test_genai_perf_over_kserve_with_its_payload_for_tensorrt_llm(
    server: Endpoints, tmp_path: Path
) -> None:
    client_installation.run(
        "genai-perf",
        ["profile", "--model=echolm_stream", "--endpoint-type=kserve", "--backend=tensorrtllm"]
        + ["--streaming", f"--url={server.grpc_url}", f"--tokenizer={TOKENIZER}"]
        + ["--request-count=12", "--concurrency=3", "--synthetic-input-tokens-mean=40"]
        + ["--output-tokens-mean=12", "--output-tokens-mean-deterministic", "--random-seed=1"]
        + ["--extra-inputs=cache_control:no-cache", f"--artifact-dir={tmp_path}"]
        + ["--", *perf_analyzer.admin_headers(admin_key_file(server))],
        tmp_path,
    )
    [file] = tmp_path.glob("*/profile_export_genai_perf.json")
    report = json.loads(file.read_text())
    assert report["request_count"]["avg"] == 12
    # Of its own tokenization of the text, which may take fewer.
    assert report["output_sequence_length"]["avg"] == pytest.approx(12, abs=2)
    requests = requests_of(file.with_name("profile_export.json"))
    assert len(requests) == 12
    for request in requests:
        assert "".join(piece.get("text_output", "") for piece in request["response_outputs"])
        assert request["response_outputs"][-1]["num_output_tokens"] == 12


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_perf_analyzer_with_shared_memory(server: Endpoints, tmp_path: Path, protocol: str) -> None:
    """Of models without optional inputs, which it does not take with shared memory."""
    inputs = perf_analyzer.write_inputs(tmp_path / "inputs.json", [REQUEST, "find files"])
    url = server.grpc_url if protocol == "grpc" else server.http_address
    done = perf_analyzer.run(
        ["-m", "text_embedding", "-i", protocol, "-u", url, "--shared-memory=system"]
        + [f"--input-data={inputs}", "--request-count=12", "--concurrency-range=3", "--async"]
        + [f"--profile-export-file={tmp_path / 'export.json'}"]
        + perf_analyzer.admin_headers(admin_key_file(server))
    )
    assert done.returncode == 0
    assert "Request count: 12\n" in done.stdout
    assert len(requests_of(tmp_path / "export.json")) == 12


@pytest.mark.parametrize("kind", [grpcclient, httpclient], ids=["grpc", "http"])
def test_a_request_and_its_answer_in_shared_memory(
    server: Endpoints, kind: Any, expected: str
) -> None:
    values = {
        "text_input": np.array([[REQUEST.encode()]], object),
        "max_tokens": np.array([[200]], np.int32),
        "llm": np.array([[b"large_llm"]], object),
        "cache_control": np.array([[b"no-cache"]], object),
    }
    url = server.grpc_url if kind is grpcclient else server.http_address
    client = kind.InferenceServerClient(url)
    header = ADMIN_HEADER if kind is httpclient else f"triton-grpc-protocol-{ADMIN_HEADER}"
    admin = {header: admin_key_file(server).read_text().strip()}
    place = 4_096
    size = place * (len(values) + 1)
    region = shared_memory.create_shared_memory_region("test", "/echolm-test", size)
    try:
        client.register_system_shared_memory("test", "/echolm-test", size, headers=admin)
        inputs = []
        for offset, (name, value) in zip(range(place, size, place), values.items(), strict=True):
            is_text = value.dtype == object
            raw = serialize_byte_tensor(value).item() if is_text else value.tobytes()
            shared_memory.set_shared_memory_region(region, [np.frombuffer(raw, "u1")], offset)
            tensor = kind.InferInput(name, [1, 1], np_to_triton_dtype(value.dtype))
            tensor.set_shared_memory("test", len(raw), offset)
            inputs.append(tensor)
        output = kind.InferRequestedOutput("text_output")
        output.set_shared_memory("test", place)
        client.infer("echolm", inputs, outputs=[output])
        found = shared_memory.get_contents_as_numpy(region, np.object_, [1, 1])
        assert found.item().decode() == expected
    finally:
        client.unregister_system_shared_memory("test", headers=admin)
        shared_memory.destroy_shared_memory_region(region)
