"""The router in front of models that are configured as NVIDIA's: a real Triton, python models.

Of both contracts there is a decoupled model and one that is not; of the ensemble also one of an
older release, which tells no token counts.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from dummy_llm import core_with
from echolm.serving import Endpoints, running_server
from echolm.settings import JudgingSettings, LLMSettings, Settings
from nvidia_llms import write_ensemble, write_llmapi
from triton_calls import Caller, eventually, inputs, refusal, streams, text

pytestmark = pytest.mark.timeout(120)

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
ALL = "alpha beta gamma delta epsilon zeta eta theta"
LLMS = {
    "llmapi_stream": "llmapi",
    "llmapi_unary": "llmapi",
    "ensemble_stream": "inflight_batcher",
    "ensemble_unary": "inflight_batcher",
    "ensemble_old": "inflight_batcher",
}
STREAMING = ("llmapi_stream", "ensemble_stream", "ensemble_old")


@dataclass
class Deployment:
    endpoints: Endpoints
    caller: Caller
    log: Path

    def entries(self, name: str, key: str) -> list[Any]:
        """What a model has noted."""
        if not self.log.exists():
            return []
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [entry[key] for entry in found if entry["model"] == name and key in entry]

    def ask(self, prompt: str, llm: str, **options: Any) -> Any:
        return self.caller.ask(prompt, llm=llm, cache_control="no-cache", **options)


@pytest.fixture(scope="module")
def deployment(
    server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("nvidia")
    models, log = folder / "models", folder / "log.jsonl"
    shutil.copytree(REPOSITORY / "local" / "embedder", models / "embedder")
    for name, contract in LLMS.items():
        decoupled = name in STREAMING
        if contract == "llmapi":
            write_llmapi(models / name, decoupled, log)
        else:
            write_ensemble(models / name, decoupled, log, counts=name != "ensemble_old")
    settings = server_settings.model_copy(
        update={
            "data_dir": folder / "data",
            "judging": JudgingSettings(kind="none"),
            "llms": tuple(
                LLMSettings(
                    chat_template="echolm",
                    name=name,
                    contract=contract,
                    cost=1.0 + n,
                    takes_examples=False,
                )
                for n, (name, contract) in enumerate(LLMS.items())
            ),
        }
    )
    options = core_with(models)
    with running_server(settings, options) as endpoints:
        yield Deployment(endpoints, Caller(endpoints), log)


def stream(deployment: Deployment, prompt: str, llm: str, **options: Any) -> tuple[list[str], Any]:
    """The pieces of a streamed answer and its last result, or the error that it ends with."""
    row = {"text_input": prompt, "llm": llm, "stream": True, "cache_control": "no-cache"}
    with streams(deployment.endpoints) as (client, arrived):
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [{**row, **options}]))
        pieces: list[str] = []
        while True:
            result, error = arrived.get(timeout=30)
            if error is not None:
                return pieces, error
            pieces.append(result.as_numpy("text_output").item().decode())
            if result.as_numpy("llm") is not None:
                return pieces, result


@pytest.mark.parametrize("llm", LLMS)
def test_a_whole_answer(deployment: Deployment, llm: str) -> None:
    answer = deployment.ask("one two three", llm)
    assert (text(answer, "text_output"), text(answer, "llm")) == (ALL, llm)
    assert text(answer, "degraded") == ""
    counted = llm.startswith("ensemble") and llm != "ensemble_old"
    assert answer["num_output_tokens"].item() == (8 if counted else -1)
    assert (answer["num_input_tokens"].item() > 0) is counted
    # Without counts, the ensemble does not tell why an answer ended.
    assert text(answer, "finish_reason") == ("" if llm == "ensemble_old" else "stop")


@pytest.mark.parametrize("llm", LLMS)
def test_a_streamed_answer(deployment: Deployment, llm: str) -> None:
    pieces, result = stream(deployment, "one two three", llm)
    assert "".join(pieces) == ALL
    assert (len([piece for piece in pieces if piece]) > 1) is (llm in STREAMING)
    if llm in ("ensemble_stream", "ensemble_unary"):
        assert result.as_numpy("num_output_tokens").item() == 8


@pytest.mark.parametrize("llm", LLMS)
def test_sampling_parameters_arrive_by_the_contracts_names(
    deployment: Deployment, llm: str
) -> None:
    deployment.ask("sampled", llm, temperature=0.5, top_p=0.25, top_k=7, seed=2**64 - 1)
    given = deployment.entries(llm, "given")[-1]
    prefix = "sampling_param_" if llm.startswith("llmapi") else ""
    found = {key: given[prefix + key] for key in ("temperature", "top_p", "top_k", "seed")}
    assert found == {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": 2**64 - 1}
    assert given[f"{prefix}max_tokens"] == 128


ENSEMBLES = [name for name, contract in LLMS.items() if contract == "inflight_batcher"]
FOR_ENSEMBLES: dict[str, Any] = {
    "repetition_penalty": 1.5,
    "min_tokens": 2,
    "bad_words": ["no", "never"],
    "embedding_bias_words": ["yes"],
    "embedding_bias_weights": [2.0],
    "guided_decoding_guide_type": "regex",
    "guided_decoding_guide": "[a-z ]+",
}


@pytest.mark.parametrize("llm", ENSEMBLES)
def test_the_ensemble_gets_what_it_can_take(deployment: Deployment, llm: str) -> None:
    answer = deployment.ask("asked", llm, frequency_penalty=0.25, **FOR_ENSEMBLES)
    assert text(answer, "text_output") == ALL
    given = deployment.entries(llm, "given")[-1]
    asked = {**FOR_ENSEMBLES, "frequency_penalty": 0.25}
    assert {name: given[name] for name in asked} == asked


@pytest.mark.parametrize("llm", ["llmapi_stream", "llmapi_unary"])
def test_nvidias_llmapi_gets_the_penalties_that_it_has(deployment: Deployment, llm: str) -> None:
    deployment.ask("penalties", llm, frequency_penalty=0.25, presence_penalty=0.5)
    given = deployment.entries(llm, "given")[-1]
    assert given["sampling_param_frequency_penalty"] == 0.25
    assert given["sampling_param_presence_penalty"] == 0.5
    for name, value in FOR_ENSEMBLES.items():
        if name.startswith(("embedding_bias", "guided_decoding")):
            continue
        said = refusal(lambda n=name, v=value: deployment.ask("x", llm, **{n: v}))  # type: ignore[misc]
        assert f"{name}: expected nothing, since {llm} cannot take it" in said


def test_the_router_draws_an_llm_that_can_take_the_request(deployment: Deployment) -> None:
    for _ in range(8):
        answer = deployment.ask("asked of any", "auto", bad_words=["no"])
        assert text(answer, "llm") in ENSEMBLES
        assert text(answer, "degraded") == ""


@pytest.mark.parametrize("llm", LLMS)
def test_greedy_is_the_likeliest_token_and_sampling_has_another_seed_each_time(
    deployment: Deployment, llm: str
) -> None:
    prefix = "sampling_param_" if llm.startswith("llmapi") else ""
    deployment.ask("greedy", llm)
    given = deployment.entries(llm, "given")[-1]
    assert given[f"{prefix}top_k"] == 1
    assert not {f"{prefix}{key}" for key in ("temperature", "top_p", "seed")} & set(given)
    for _ in range(2):
        deployment.ask("hot", llm, temperature=1.0)
    seeds = [given[f"{prefix}seed"] for given in deployment.entries(llm, "given")[-2:]]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("llm", LLMS)
def test_max_tokens_are_kept(deployment: Deployment, llm: str) -> None:
    answer = deployment.ask("short please", llm, max_tokens=3)
    assert text(answer, "text_output") == "alpha beta gamma"
    assert text(answer, "finish_reason") == ("" if llm == "ensemble_old" else "length")


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_word_is_not_part_of_the_answer(
    deployment: Deployment, llm: str, streamed: bool
) -> None:
    options: dict[str, Any] = {"stop_words": ["never", "gamma"]}
    if streamed:
        pieces, result = stream(deployment, "stop early", llm, **options)
        got, reason = "".join(pieces), result.as_numpy("finish_reason").item().decode()
    else:
        answer = deployment.ask("stop early", llm, **options)
        got, reason = text(answer, "text_output"), text(answer, "finish_reason")
    assert (got, reason) == ("alpha beta ", "stop")


def test_what_is_streamed_after_the_stop_word_is_not_generated(deployment: Deployment) -> None:
    before = len(deployment.entries("llmapi_stream", "cancelled"))
    pieces, _ = stream(deployment, "RAMBLE on", "llmapi_stream", stop_words=["delta"])
    assert "".join(pieces) == "alpha beta gamma "
    assert eventually(lambda: len(deployment.entries("llmapi_stream", "cancelled")) > before)


@pytest.mark.parametrize("llm", LLMS)
def test_a_prompt_that_does_not_fit_is_the_callers_fault(deployment: Deployment, llm: str) -> None:
    said = refusal(lambda: deployment.ask("TOO-LONG", llm))
    assert "INVALID_ARGUMENT" in said
    assert "max_num_tokens" in said


@pytest.mark.parametrize("llm", LLMS)
def test_an_llm_that_fails_fails_that_request_only(deployment: Deployment, llm: str) -> None:
    # All of them fail on this prompt.
    assert "UNAVAILABLE" in refusal(lambda: deployment.ask("FAIL please", llm))
    assert text(deployment.ask("and well again", llm), "text_output") == ALL


@pytest.mark.parametrize("llm", STREAMING)
def test_a_stream_that_fails_ends_in_an_error(deployment: Deployment, llm: str) -> None:
    pieces, error = stream(deployment, "FAIL-LATE", llm)
    assert "".join(pieces).startswith("alpha")
    assert f"{llm} failed after part of the answer was sent" in str(error)


@pytest.mark.parametrize("llm", LLMS)
def test_a_client_that_goes_ends_the_generation(deployment: Deployment, llm: str) -> None:
    before = len(deployment.entries(llm, "cancelled"))
    asked = len(deployment.entries(llm, "given"))
    row = {"text_input": "SLOWLY", "llm": llm, "stream": True, "cache_control": "no-cache"}
    with streams(deployment.endpoints) as (client, _):
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [row]))
        assert eventually(lambda: len(deployment.entries(llm, "given")) > asked)
        time.sleep(0.3)
    assert eventually(lambda: len(deployment.entries(llm, "cancelled")) > before, 15)
