"""Conversations end to end: a real Triton, Milvus Lite, the embedder, LLMs that repeat prompts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from dummy_llm import core_with, dummy_llm
from echolm.serving import Endpoints, running_server
from echolm.settings import ExamplesSettings, JudgingSettings, Limits, LLMSettings, Settings
from echolm_client import Client, Message
from triton_calls import Caller, Result, eventually, inputs, post, refusal, samples, streams, text

pytestmark = pytest.mark.timeout(240)

SALES = ("Show me the monthly revenue of the sales department", "It was 7 in April.")
WEATHER = ("Will the weather in Lisbon be sunny this weekend?", "Sun on both days there.")
ENDING = "and how is it in May?"


@pytest.fixture(scope="module")
def endpoints(
    server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoints]:
    folder = tmp_path_factory.mktemp("conversations")
    models = folder / "models"
    embedder = Path(__file__).resolve().parents[2] / "model_repository" / "local" / "embedder"
    models.mkdir()
    (models / "embedder").symlink_to(embedder)
    for name in ("small", "large"):
        dummy_llm(name, {"echo_prompt": "true"}, models)
    llms = tuple(
        LLMSettings(name=name, cost=cost, takes_examples=takes, chat_template="echolm")
        for name, cost, takes in (("small", 0.1, True), ("large", 1.0, False))
    )
    settings = server_settings.model_copy(
        update={
            "data_dir": folder / "data",
            "judging": JudgingSettings(kind="none"),
            # What repeats a prompt holds a template's markers.
            "examples": ExamplesSettings(injections="keep"),
            "limits": Limits(max_input_chars=2_000, max_conversation_chars=4_000),
            "llms": llms,
        }
    )
    with running_server(settings, core_with(models)) as found:
        yield found


@pytest.fixture
def tenant() -> str:
    return f"test-{uuid.uuid4().hex}"


def chat(*texts: str, system: str = "") -> str:
    """Messages, of a user and an assistant in turn."""
    roles = ["user", "assistant"] * len(texts)
    said = [("system", system)] * bool(system) + list(zip(roles, texts, strict=False))
    return json.dumps([{"role": role, "content": content} for role, content in said])


def after(history: tuple[str, str]) -> str:
    return chat(*history, ENDING)


def shown(*texts: str) -> str:
    """The end of a prompt in which these turns were taken."""
    *earlier, last = texts
    pairs = zip(earlier[::2], earlier[1::2], strict=True)
    before = "".join(f"<|user|>{asked}<|assistant|>{said}<|end|>" for asked, said in pairs)
    return f"{before}<|user|>{last}<|assistant|>"


def ask(endpoints: Endpoints, messages: str, **options: Any) -> Result:
    return Caller(endpoints).ask_rows({"messages": messages, "max_tokens": 400, **options})


def test_an_llm_reads_what_was_said_before_whoever_asks(endpoints: Endpoints, tenant: str) -> None:
    messages = chat(*SALES, ENDING, system="Be brief.")
    expected = f"<|system|>Be brief.<|end|>{shown(*SALES, ENDING)}"
    options = {"tenant": tenant, "max_tokens": 400, "cache_control": "no-cache"}
    for protocol in ("grpc", "http"):
        answer = Caller(endpoints, protocol).ask_rows({"messages": messages, **options})
        assert text(answer, "text_output") == expected
        assert text(answer, "degraded") == ""
    status, body = post(endpoints, "echolm/generate", {"messages": messages, **options})
    assert (status, json.loads(body)["text_output"]) == (200, expected)
    told: list[Message] = json.loads(messages)
    with Client(endpoints.grpc_url) as client:
        with client.stream(messages=told, max_tokens=400, cache_control="no-cache") as stream:
            assert "".join(stream) == expected
        answered = client.generate(messages=told, max_tokens=400, cache_control="no-cache")
        assert answered.text == expected


def test_rows_of_several_conversations_are_answered_together(
    endpoints: Endpoints, tenant: str
) -> None:
    rows = [
        {"messages": after(history), "tenant": tenant, "max_tokens": 400}
        for history in (SALES, WEATHER)
    ]
    answers = Caller(endpoints).ask_rows(*rows)
    for row, history in enumerate((SALES, WEATHER)):
        assert text(answers, "text_output", row).endswith(shown(*history, ENDING))


def test_look_alikes_do_not_answer_for_one_another(endpoints: Endpoints, tenant: str) -> None:
    options = {"tenant": tenant}
    taught = ask(endpoints, after(SALES), llm="large", **options)
    answer = text(taught, "text_output")

    def stored(messages: str, tries: int = 5) -> bool:
        # Some are drawn to be checked.
        found = [
            ask(endpoints, messages, cache_control="no-store", **options) for _ in range(tries)
        ]
        given = [one for one in found if text(one, "llm") == "stored"]
        return bool(given) and all(text(one, "text_output") == answer for one in given)

    assert eventually(lambda: stored(after(SALES)))
    given = ask(endpoints, after(SALES), llm="small", cache_control="no-store", **options)
    assert given["example_ids"].shape == (1, 1)
    assert text(given, "text_output").startswith(shown(*SALES, ENDING)), "with its own history"
    assert text(given, "text_output").endswith(shown(*SALES, ENDING))
    for other in (after(WEATHER), chat(ENDING), chat(f"{SALES[0]} {SALES[1]} {ENDING}")):
        assert not stored(other)
        shown_to_small = ask(endpoints, other, llm="small", cache_control="no-store", **options)
        if other == after(WEATHER):
            assert text(shown_to_small, "text_output") == shown(*WEATHER, ENDING)


def test_a_conversation_stays_with_its_llm_and_is_counted(
    endpoints: Endpoints, tenant: str
) -> None:
    name = "echolm_conversation_answers_total"
    before = samples(endpoints, name)
    first = ask(endpoints, chat(SALES[0]), llm="small", tenant=tenant)
    messages = chat(SALES[0], text(first, "text_output"), ENDING)
    ask(endpoints, messages, llm="small", tenant=tenant)
    assert eventually(lambda: samples(endpoints, name, result="stayed") > 0)
    ask(endpoints, messages, llm="large", tenant=tenant)
    assert eventually(lambda: samples(endpoints, name) == before + 2)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


BAD: list[tuple[Any, str]] = [
    (b"[]", "messages: expected an array of 1 to 1024 messages, got 0"),
    (b"[" * 100_000, "messages: expected a"),
    (b'[{"role":"user","content":"\xff"}]', "messages: expected UTF-8 text"),
    (user(" "), "messages[0].content: expected text that is not empty"),
    (user([{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0]"),
    ([{"role": "bot", "content": "a"}], "messages[0].role: expected one of"),
    ([*user("a"), {"role": "assistant", "content": "b"}], "the last message to be a user's"),
    (
        [*user("a"), {"role": "tool", "tool_call_id": "c", "content": "1"}],
        "messages[1].tool_call_id",
    ),
    (user("x" * 2_001), "messages[-1].content: expected at most 2000 characters"),
    (user("x" * 10_000_000), "messages: expected at most 4000 characters"),
]


@pytest.mark.parametrize(("messages", "told"), BAD, ids=range(len(BAD)))
def test_bad_messages_are_the_callers_fault_and_named(
    endpoints: Endpoints, messages: Any, told: str
) -> None:
    data = messages if isinstance(messages, bytes) else json.dumps(messages).encode()
    error = refusal(lambda: Caller(endpoints).ask_rows({"messages": data}))
    assert error.startswith("StatusCode.INVALID_ARGUMENT [invalid_request]")
    assert told in error
    with streams(endpoints) as (client, arrived):
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [{"messages": data}]))
        _, error = arrived.get(timeout=60)
    assert told in str(error)
    if b"\xff" not in data:
        status, body = post(endpoints, "echolm/generate", {"messages": data.decode()})
        assert (status, told in json.loads(body)["error"]) == (400, True)


@pytest.mark.parametrize(
    "body",
    [{}, {"max_tokens": 3}, {"text_input": "a", "messages": chat("a")}],
    ids=["nothing", "neither", "both"],
)
def test_a_request_has_a_text_or_messages(endpoints: Endpoints, body: dict[str, Any]) -> None:
    status, answer = post(endpoints, "echolm/generate", body)
    assert status == 400
    if body:
        assert "text_input, messages: expected one of these inputs" in answer
        error = refusal(lambda: Caller(endpoints).ask_rows(body))
        assert error.startswith("StatusCode.INVALID_ARGUMENT [invalid_request] text_input, mess")
    assert text(ask(endpoints, chat("still up?")), "llm") in ("small", "large")
