"""EchoLM in front of a server of OpenAI's API: real Triton, real HTTP, TLS; no LLM behind it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from certificates import authority, certified
from dummy_llm import REPOSITORY, core_with, dummy_llm
from echolm import contracts
from echolm.errors import ConfigurationError
from echolm.serving import Endpoints, running_server
from echolm.settings import JudgingSettings, Limits, LLMSettings, RoutingSettings, Settings
from openai import BadRequestError, OpenAI
from openai_server import MODEL, OpenAIServer
from triton_calls import (
    Caller,
    eventually,
    inputs,
    outputs,
    proof,
    refusal,
    samples,
    streams,
    text,
)

pytestmark = pytest.mark.timeout(240)

KEY, WRONG_KEY = "sk-the-key", "sk-another-key"


@dataclass
class Deployment:
    endpoints: Endpoints
    caller: Caller
    openai: OpenAIServer

    @property
    def log(self) -> str:
        return (self.endpoints.data_dir / "logs" / "triton.log").read_text()

    def bodies(self, holding: str) -> list[dict[str, Any]]:
        """Bodies of the completions whose messages hold a text."""
        return [body for _, body in self.openai.requests if holding in str(body["messages"])]


@pytest.fixture(scope="module")
def deployment(
    server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """``big`` and ``locked``, which has a wrong key, behind one server; ``small_llm`` in Triton."""
    folder = tmp_path_factory.mktemp("openai")
    models = folder / "models"
    dummy_llm("small_llm", {"text": "small says so"}, models)
    ca = authority(folder)
    own = certified(ca, "server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own.certificate, own.key)
    openai = OpenAIServer(tls, KEY)
    openai.text = "the large LLM says [[A]]"
    (folder / "key").write_text(f"{KEY}\n")
    there: dict[str, Any] = {
        "contract": "openai",
        "url": openai.url,
        "remote_model": MODEL,
        "tls_ca": ca.certificate,
    }
    settings = server_settings.model_copy(
        update={
            "data_dir": folder / "data",
            "limits": Limits(stream_interval_ms=0.0),
            "judging": JudgingSettings(sample_share=1.0, solicited_share=0.0),
            "routing": RoutingSettings(warm_up_ratings=0),
            "llms": (
                LLMSettings(
                    name="small_llm",
                    cost=0.1,
                    takes_examples=True,
                    can_judge=False,
                    chat_template="echolm",
                ),
                LLMSettings(
                    name="big", cost=1.0, takes_examples=True, api_key_file=folder / "key", **there
                ),
                LLMSettings(
                    name="locked", cost=0.5, takes_examples=False, api_key=WRONG_KEY, **there
                ),
            ),
        }
    )
    try:
        options = replace(
            core_with(models), profile="remote", model_repositories=(models,), gateway_port=0
        )
        with running_server(settings, options) as endpoints:
            yield Deployment(endpoints, Caller(endpoints), openai)
    finally:
        openai.close()


def ready(deployment: Deployment, llm: str) -> float:
    return samples(deployment.endpoints, "echolm_llm_ready", model=llm)


def test_an_answer_comes_from_the_server(deployment: Deployment) -> None:
    answer = deployment.caller.ask(
        "an answer, please",
        llm="big",
        system_prompt="be brief",
        max_tokens=3,
        stop_words=["never"],
        temperature=0.5,
        seed=7,
        cache_control="no-cache",
    )
    assert text(answer, "text_output") == "the large LLM "
    assert (text(answer, "llm"), text(answer, "degraded")) == ("big", "")
    assert text(answer, "finish_reason") == "length"
    assert (answer["num_input_tokens"].item(), answer["num_output_tokens"].item()) == (3, 3)
    [body] = deployment.bodies("an answer, please")[:1]
    assert body == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "an answer, please"},
        ],
        "max_tokens": 3,
        "temperature": 0.5,
        "seed": 7,
        "stop": ["never"],
    }


def test_a_stream_comes_in_pieces(deployment: Deployment) -> None:
    row = {"text_input": "stream it", "llm": "big", "stream": True}
    with streams(deployment.endpoints) as (client, arrived):
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [row]))
        pieces = []
        while True:
            result, error = arrived.get(timeout=30)
            assert error is None
            got = outputs(result, contracts.ECHOLM_STREAM)
            pieces.append(text(got, "text_output"))
            if "llm" in got:
                break
    assert [piece for piece in pieces if piece] == ["the ", "large ", "LLM ", "says ", "[[A]]"]
    assert (text(got, "llm"), text(got, "finish_reason")) == ("big", "stop")
    assert got["num_output_tokens"].item() == 5
    [body] = deployment.bodies("stream it")[:1]
    assert body["stream_options"] == {"include_usage": True}


def test_examples_are_earlier_turns(deployment: Deployment) -> None:
    caller, tenant = deployment.caller, {"tenant": "turns"}
    caller.ask("how do I list all files of a folder", llm="big", **tenant)

    def examples() -> int:
        answer = caller.ask("how do I list all files of this folder", llm="big", **tenant)
        return int((answer["example_ids"] > 0).sum())

    assert eventually(examples)
    asked = deployment.bodies("how do I list all files of this folder")
    *shown, last = next(body["messages"] for body in asked if len(body["messages"]) > 1)
    assert last == {"role": "user", "content": "how do I list all files of this folder"}
    assert [m["role"] for m in shown] == ["user", "assistant"] * (len(shown) // 2)
    assert {m["content"] for m in shown[::2]} <= {
        "how do I list all files of a folder",
        "how do I list all files of this folder",
    }
    assert {m["content"] for m in shown[1::2]} == {"the large LLM says [[A]]"}


def test_an_llm_behind_a_server_judges(deployment: Deployment) -> None:
    def judged() -> float:
        return samples(deployment.endpoints, "echolm_judgements_total", result="rated")

    def asked_and_judged() -> bool:
        deployment.caller.ask("judge this one")
        return judged() > 0

    assert eventually(asked_and_judged)
    [judging] = deployment.bodies("<answer_a>")[0]["messages"]
    assert judging["role"] == "user"
    assert "judge this one" in judging["content"]


def test_what_the_server_refuses_another_llm_answers(deployment: Deployment) -> None:
    answer = deployment.caller.ask("STATUS-400 please", llm="big")
    assert text(answer, "llm") == "small_llm"
    assert "big refused the request" in text(answer, "degraded")
    assert "LLM big failed: big: told to fail" in deployment.log


def test_a_wrong_key_degrades_and_the_log_names_the_setting(deployment: Deployment) -> None:
    answer = deployment.caller.ask("with a wrong key", llm="locked", cache_control="no-cache")
    assert text(answer, "degraded") == "locked unavailable"
    assert text(answer, "llm") == "big"
    assert "LLM locked failed: locked: locked: expected a key that " in deployment.log
    assert "correct llms.api_key\n" in deployment.log
    assert eventually(lambda: "LLM locked is not ready: " in deployment.log)
    assert eventually(lambda: ready(deployment, "big") == 1.0)
    assert ready(deployment, "locked") == 0.0
    assert KEY not in deployment.log
    assert WRONG_KEY not in deployment.log


def test_a_stream_that_breaks_after_its_first_piece_is_an_error(deployment: Deployment) -> None:
    row = {"text_input": "LATE-500", "llm": "big", "stream": True}
    with streams(deployment.endpoints) as (client, arrived):
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [row]))
        result, error = arrived.get(timeout=30)
        assert error is None
        assert result.as_numpy("text_output").item() == b"the "
        _, error = arrived.get(timeout=30)
    assert "[unavailable] big failed after part of the answer was sent" in str(error)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_noticed_at_the_server(
    deployment: Deployment, stream: bool
) -> None:
    row = {"text_input": f"HANG {stream}", "llm": "big", "cache_control": "no-cache"}
    if stream:
        with streams(deployment.endpoints) as (client, arrived):
            made = inputs(grpcclient, [{**row, "stream": True}])
            client.async_stream_infer("echolm_stream", made)
            assert arrived.get(timeout=30)[1] is None
    else:
        made = inputs(grpcclient, [row])
        call = deployment.caller.client.async_infer("echolm", made, lambda result, error: None)
        assert eventually(lambda: deployment.bodies("HANG False"))
        call.cancel()
    assert deployment.openai.left.get(timeout=30) == str(stream)
    cancelled = "echolm_llm_cancelled_total"
    assert eventually(lambda: samples(deployment.endpoints, cancelled, model="big") > 0)


WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def client(deployment: Deployment) -> Iterator[OpenAI]:
    url = deployment.endpoints.gateway_url
    with OpenAI(api_key="none", base_url=url, max_retries=0) as client:
        yield client


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_through_the_gateway(client: OpenAI, streamed: bool) -> None:
    asked: Any = {
        "model": "echolm",
        "messages": said("CALL-weather CALL-weather"),
        "tools": [WEATHER],
        "tool_choice": "required",
    }
    if streamed:
        with client.chat.completions.stream(**asked) as stream:
            answer: Any = stream.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert [c.function.arguments for c in choice.message.tool_calls] == [
        '{"number": 0}',
        '{"number": 1}',
    ]
    assert [c.id for c in choice.message.tool_calls] == ["call_0", "call_1"]


def test_a_tools_result_goes_to_the_llm(deployment: Deployment, client: OpenAI) -> None:
    function = {"name": "weather", "arguments": "{}"}
    call = {"id": "c1", "type": "function", "function": function}
    messages: Any = [
        *said("how is the weather in the town of results"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    answer = client.chat.completions.create(model="big", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == deployment.openai.text
    [body] = deployment.bodies("the town of results")
    assert body["messages"] == [messages[0], {**messages[1], "content": ""}, messages[2]]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_log_probabilities_of_both_endpoints(client: OpenAI, chat: bool, streamed: bool) -> None:
    asked: Any = {"model": "big", "stream": streamed, "max_tokens": 2}
    if chat:
        asked |= {"messages": said("hello"), "logprobs": True, "top_logprobs": 1}
        found = client.chat.completions.create(**asked)
    else:
        found = client.completions.create(prompt="hello", logprobs=1, **asked)
    choices = [part.choices[0] for part in (found if streamed else [found])]
    tokens: list[Any] = []
    for choice in choices:
        if choice.logprobs is not None and chat:
            tokens += [(t.token, t.logprob) for t in choice.logprobs.content]
            assert all(t.top_logprobs[0].token == "other 0" for t in choice.logprobs.content)
        elif choice.logprobs is not None:
            tokens += zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True)
            assert all(top["other 0"] == -1.5 for top in choice.logprobs.top_logprobs)
    assert tokens == [("the ", -0.5), ("large ", -0.5)]


def test_rows_of_which_some_ask_for_more(deployment: Deployment) -> None:
    asked = [
        {"text_input": "CALL-weather", "tools": json.dumps([WEATHER])},
        {"text_input": "CALL-weather", "tools": "[]"},
    ]
    found = deployment.caller.client.infer("echolm", inputs(grpcclient, asked))
    calls = [json.loads(c or "[]") for c in found.as_numpy("tool_calls")[:, 0]]
    assert [[c["function"]["name"] for c in each] for each in calls] == [["weather"], []]
    assert found.as_numpy("text_output")[1, 0] in (b"small says so", b"the large LLM says [[A]]")


def test_what_an_llm_cannot_do_is_refused_by_the_fields_name(client: OpenAI) -> None:
    wanted: dict[str, Any] = {
        "tools": {"tools": [WEATHER]},
        "logprobs": {"logprobs": True},
        "response_format": {"response_format": {"type": "json_object"}},
    }
    for param, fields in wanted.items():
        with pytest.raises(BadRequestError, match="small_llm cannot take it") as refused:
            client.chat.completions.create(model="small_llm", messages=said("hello"), **fields)
        assert refused.value.param == param
    with pytest.raises(BadRequestError, match="expected a JSON schema") as refused:
        bad = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "text"}}}
        client.chat.completions.create(
            model="echolm",
            messages=said("hello"),
            response_format=bad,  # type: ignore[arg-type]
        )
    assert refused.value.param == "response_format.json_schema.schema"


def test_a_form_reaches_the_server_as_it_was_written(
    deployment: Deployment, client: OpenAI
) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [None]}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    text = "a form that is written"
    for _ in range(2):  # the second time a stored answer might be given
        answer = client.chat.completions.create(
            model="echolm", messages=said(text), response_format=form
        )
        extra: Any = answer.model_extra
        assert extra["echolm"]["llm"] == "big"
    assert [body["response_format"] for body in deployment.bodies(text)] == [form] * 2


def test_a_cost_weight_in_the_models_name_decides(client: OpenAI) -> None:
    for _ in range(3):
        answer = client.chat.completions.create(model="echolm-900", messages=said("hello there"))
        extra: Any = answer.model_extra
        assert extra["echolm"]["llm"] in ("small_llm", "stored")
    names = [model.id for model in client.models.list()]
    assert {"echolm", "echolm-0.2", "big"} <= set(names)


def test_another_llm_answers_while_the_server_is_away(deployment: Deployment) -> None:
    """The last test here."""
    deployment.openai.stop()
    answer = deployment.caller.ask("are you there", llm="big", cache_control="no-cache")
    assert text(answer, "text_output") == "small says so"
    assert "big unavailable" in text(answer, "degraded")
    assert eventually(lambda: ready(deployment, "big") == 0.0)
    deployment.openai.start()
    assert eventually(lambda: ready(deployment, "big") == 1.0)
    answer = deployment.caller.ask("are you there", llm="big", cache_control="no-cache")
    assert (text(answer, "llm"), text(answer, "degraded")) == ("big", "")


def test_only_configured_llms_can_be_called_past_the_front_door(deployment: Deployment) -> None:
    def call(llm: str, prompt: str) -> Any:
        values = {"text_input": prompt, "llm": llm}
        made = []
        for name, value in values.items():
            tensor = grpcclient.InferInput(name, [1], "BYTES")
            tensor.set_data_from_numpy(np.array([value.encode()], object))
            made.append(tensor)
        with streams(deployment.endpoints) as (client, arrived):
            signed = proof(deployment.endpoints, "remote_llm", made)
            client.async_stream_infer("remote_llm", made, parameters=signed)
            result, error = arrived.get(timeout=30)
        if error is not None:
            raise error
        return result

    assert "llm: expected one of ['big', 'locked']" in refusal(lambda: call("small_llm", "[]"))
    injected = '[{"role": "user", "content": "x"}], "model": "another"'
    assert "expected a JSON array of messages" in refusal(lambda: call("big", injected))


def test_files_are_checked_before_anything_starts(tmp_path: Path) -> None:
    llm = LLMSettings(
        name="big",
        contract="openai",
        url="https://localhost:1/v1",
        api_key_file=tmp_path / "none",
        cost=1.0,
        takes_examples=False,
    )
    settings = Settings(data_dir=tmp_path / "data", llms=(llm,))
    with (
        pytest.raises(
            ConfigurationError, match=r"LLM big: llms\.api_key_file: expected a readable"
        ),
        running_server(settings, core_with(REPOSITORY / "local")),
    ):
        raise AssertionError("it started")
    assert not (tmp_path / "data" / "run").exists()
