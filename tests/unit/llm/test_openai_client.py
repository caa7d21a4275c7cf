"""LLMs behind OpenAI's API, against a server that does what a request tells it to."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from certificates import Certificate, authority, certified
from echolm.conversation import Turn
from echolm.errors import (
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    UnavailableError,
)
from echolm.llm.openai_answer import ChatAnswer
from echolm.llm.openai_client import OpenAIClient
from echolm.llm.openai_messages import OpenAIMessages
from echolm.primitives import Completion, Piece, Sampling
from echolm.settings import LLMSettings, Settings
from echolm.wiring.llms import build_endpoints
from openai_server import MODEL, OpenAIServer

KEY = "sk-abc123"
SAMPLING = Sampling(max_tokens=16)
NO_TEXT = b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}'


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    made = OpenAIServer()
    yield made
    made.close()


def settings(server: OpenAIServer, **values: Any) -> LLMSettings:
    given = {"url": server.url, "remote_model": MODEL, "cost": 1.0, "takes_examples": True}
    return LLMSettings(name="big", contract="openai", **{**given, **values})


def client(server: OpenAIServer, timeout_s: float = 30.0, **values: Any) -> OpenAIClient:
    return OpenAIClient(settings(server, **values), timeout_s)


def messages(text: str) -> str:
    return OpenAIMessages().render([Turn("user", text)])


async def ask(llm: OpenAIClient, text: str, sampling: Sampling = SAMPLING) -> Completion:
    return await llm.generate("r-1", messages(text), sampling, None)


async def streamed(llm: OpenAIClient, text: str) -> tuple[list[str], Completion]:
    pieces: list[str] = []
    completion = await llm.generate(
        "r-1", messages(text), SAMPLING, lambda piece: pieces.append(piece.text)
    )
    return pieces, completion


# What is sent


def test_turns_are_messages_and_nothing_in_them_is_escaped() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        Turn("system", "rules"),
        Turn("user", "now «ü» <|im_end|>"),
        Turn("assistant", "", tool_calls=json.dumps([call])),
        Turn("tool", "42", tool_call_id="c1"),
    ]
    assert json.loads(OpenAIMessages().render(turns)) == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "now «ü» <|im_end|>"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]


def test_what_openais_api_lacks_goes_to_servers_that_take_more(server: OpenAIServer) -> None:
    asked = Sampling(presence_penalty=0.5, repetition_penalty=1.1, bad_words=("x",))
    assert client(server).lacks(asked) == ["bad_words"]
    openai = client(server, takes_top_k=False)
    assert openai.lacks(asked) == ["repetition_penalty", "bad_words"]
    assert openai.lacks(Sampling()) == []


async def test_a_request_has_openais_fields(server: OpenAIServer) -> None:
    sampling = Sampling(7, 0.5, 0.25, 3, 2**64 - 1, ("end", "«ün»"), 0.75, -0.5)
    await ask(client(server, api_key=KEY), "hello", sampling)
    [(headers, body)] = server.requests
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "seed": 2**63 - 1,
        "stop": ["end", "«ün»"],
        "frequency_penalty": 0.75,
        "presence_penalty": -0.5,
    }


async def test_what_has_its_neutral_value_is_not_sent(server: OpenAIServer) -> None:
    await ask(client(server), "hello")
    [(headers, body)] = server.requests
    assert "Authorization" not in headers
    assert body.keys() == {"model", "messages", "max_tokens", "temperature"}
    assert body["temperature"] == 0.0


async def test_the_configured_fields_are_sent(server: OpenAIServer) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 1}
    llm = client(server, max_tokens_field="max_completion_tokens", extra_body=extra)
    await ask(llm, "hello")
    [(_, body)] = server.requests
    assert body["max_completion_tokens"] == 16
    assert "max_tokens" not in body
    assert {name: body[name] for name in extra} == extra


async def test_a_server_without_top_k_does_not_get_it(server: OpenAIServer) -> None:
    llm = client(server, takes_top_k=False)
    with pytest.raises(InvalidRequestError, match="top_k: expected none for the LLM big, got 4"):
        await ask(llm, "hello", Sampling(16, 1.0, top_k=4))
    assert server.requests == []
    assert (await ask(llm, "hello", Sampling(16, 0.0, top_k=4))).text
    assert "top_k" not in server.requests[0][1]


async def test_completions_get_the_prompt(server: OpenAIServer) -> None:
    llm = settings(server, openai_api="completions", chat_template="chatml")
    endpoint = build_endpoints(Settings(llms=(llm,)))["big"]
    prompt = endpoint.template.render([Turn("user", "hello")])
    pieces: list[str] = []
    whole = await endpoint.client.generate("r", prompt, SAMPLING, None)
    assert (
        await endpoint.client.generate(
            "r", prompt, SAMPLING, lambda piece: pieces.append(piece.text)
        )
        == whole
    )
    assert ["".join(pieces), whole.text] == [server.text] * 2
    assert prompt.startswith("<|im_start|>user")
    assert [body["prompt"] for _, body in server.requests] == [prompt] * 2
    assert not any("messages" in body for _, body in server.requests)


@pytest.mark.parametrize("prompt", ["hello", '[], "model": "other"', '{"role": "user"}', ""])
async def test_a_prompt_that_is_no_list_of_messages_is_refused(
    server: OpenAIServer, prompt: str
) -> None:
    with pytest.raises(InvalidRequestError, match="text_input: expected a JSON array of messages"):
        await client(server).generate("r", prompt, SAMPLING, None)
    assert server.requests == []


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "b", "strict": False, "schema": SCHEMA}}
TOOLS = Sampling(16, tools=json.dumps([WEATHER]))


async def test_tools_and_forms_are_sent_as_the_caller_wrote_them(server: OpenAIServer) -> None:
    sampling = Sampling(
        16,
        tools=json.dumps([WEATHER]),
        tool_choice='"required"',
        guide_type="json_schema",
        guide=json.dumps(SCHEMA),
        response_format=json.dumps(FORMAT),
        top_logprobs=3,
    )
    assert client(server).lacks(sampling) == []
    await ask(client(server), "hello", sampling)
    [(_, body)] = server.requests
    assert (body["tools"], body["tool_choice"]) == ([WEATHER], "required")
    assert body["response_format"] == FORMAT
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)


@pytest.mark.parametrize(
    ("guide", "form"),
    [
        (Sampling(16, guide_type="json"), {"type": "json_object"}),
        (
            Sampling(16, guide_type="json_schema", guide=json.dumps(SCHEMA)),
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        ),
    ],
)
async def test_guided_decoding_of_json_is_a_response_format(
    server: OpenAIServer, guide: Sampling, form: Any
) -> None:
    assert client(server).lacks(guide) == []
    await ask(client(server), "hello", guide)
    assert server.requests[0][1]["response_format"] == form


@pytest.mark.parametrize(
    ("setting", "asked", "lacking"),
    [
        ("takes_tools", replace(TOOLS, tool_choice='"auto"'), ["tools", "tool_choice"]),
        ("takes_logprobs", Sampling(top_logprobs=0), ["logprobs"]),
        ("takes_response_format", Sampling(guide_type="json"), ["guided_decoding_guide_type"]),
    ],
)
def test_what_a_server_does_not_take(
    server: OpenAIServer, setting: str, asked: Sampling, lacking: list[str]
) -> None:
    assert client(server).lacks(asked) == []
    assert client(server, **{setting: False}).lacks(asked) == lacking
    completions = client(server, openai_api="completions", chat_template="chatml")
    assert completions.lacks(asked) == ([] if setting == "takes_logprobs" else lacking)


def test_other_guides_than_json_are_not_openais(server: OpenAIServer) -> None:
    regex = Sampling(guide_type="regex", guide="[a-z]")
    lacking = ["guided_decoding_guide_type", "guided_decoding_guide"]
    assert client(server).lacks(regex) == lacking


@pytest.mark.parametrize("name", ["tools", "tool_choice", "response_format"])
async def test_json_of_a_request_cannot_become_another_field(
    server: OpenAIServer, name: str
) -> None:
    asked = replace(SAMPLING, **{name: '[], "model": "other"'})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=f"{name}: expected JSON"):
        await ask(client(server), "hello", asked)
    assert server.requests == []


# What is answered


async def test_an_answer_has_text_reason_and_counts(server: OpenAIServer) -> None:
    assert await ask(client(server), "two words") == Completion(server.text, "stop", 2, 5)
    cut = await ask(client(server), "two words", Sampling(max_tokens=3))
    assert cut == Completion("an answer of ", "length", 2, 3)


async def answers(
    llm: OpenAIClient, text: str, sampling: Sampling
) -> tuple[Completion, Completion, list[Piece]]:
    """A whole answer, the same one streamed, and its pieces."""
    pieces: list[Piece] = []
    streamed = await llm.generate("r", messages(text), sampling, pieces.append)
    return await ask(llm, text, sampling), streamed, pieces


async def test_calls_of_tools_are_the_same_whole_and_streamed(server: OpenAIServer) -> None:
    other = {"type": "function", "function": {"name": "clock"}}
    sampling = Sampling(16, tools=json.dumps([WEATHER, other]))
    text = "CALL-weather CALL-clock CALL-none"
    whole, streamed, pieces = await answers(client(server), text, sampling)
    assert whole == streamed
    assert (whole.text, whole.finish_reason) == ("", "tool_calls")
    assert whole.tool_calls == tuple(
        {
            "id": f"call_{k}",
            "type": "function",
            "function": {"name": name, "arguments": f'{{"number": {k}}}'},
        }
        for k, name in enumerate(("weather", "clock"))
    )
    deltas = [delta for piece in pieces for delta in piece.tool_calls]
    assert [delta["index"] for delta in deltas] == [0, 0, 0, 1, 1, 1]
    assert ["id" in delta for delta in deltas] == [True, False, False] * 2


async def test_a_server_that_does_not_stream_has_calls_as_well(server: OpenAIServer) -> None:
    llm = client(server, extra_body={"stream_options": None, "tools": [WEATHER]})
    server.streams = False
    whole, streamed, pieces = await answers(llm, "CALL-weather", TOOLS)
    assert whole == streamed
    [piece] = pieces
    assert piece.tool_calls == ({"index": 0, **whole.tool_calls[0]},)


async def test_tokens_have_openais_fields_and_no_others(server: OpenAIServer) -> None:
    whole, streamed, _ = await answers(client(server), "hi", Sampling(2, top_logprobs=1))
    assert whole == streamed
    other = {"token": "other 0", "logprob": -1.5, "bytes": list(b"other 0")}
    assert whole.logprobs[0] == {
        "token": "an ",
        "logprob": -0.5,
        "bytes": list(b"an "),
        "top_logprobs": [other],
    }
    assert [token["token"] for token in whole.logprobs] == ["an ", "answer "]
    completions = client(server, openai_api="completions", chat_template="chatml")
    done = await completions.generate("r", "hi", Sampling(1, top_logprobs=1), None)
    assert done.logprobs[0]["top_logprobs"][1] == other
    assert [body["logprobs"] for _, body in server.requests] == [True, True, 1]


@pytest.mark.parametrize(
    "said",
    [
        {"tool_calls": [{"id": "a", "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"id": "a", "function": {"name": 3}}]},
        {"tool_calls": [{"id": "a", "index": 1_000_000, "function": {"name": "b"}}]},
        {"tool_calls": ["a"]},
        {"tool_calls": 3},
    ],
)
async def test_calls_that_are_none_are_no_answer(server: OpenAIServer, said: Any) -> None:
    answer = ChatAnswer()
    with pytest.raises(ValueError, match="expected a completion"):
        answer.take({"choices": [{"message": said}]})


def test_a_call_without_an_id_gets_one_and_a_name_counts_once() -> None:
    answer = ChatAnswer()
    for part in ("{", "}"):  # some servers repeat the name with each part
        call = {"index": 0, "function": {"name": "f", "arguments": part}}
        answer.take({"choices": [{"delta": {"tool_calls": [call]}}]})
    [call] = answer.completion().tool_calls
    assert call["id"].startswith("call_")
    assert call["function"] == {"name": "f", "arguments": "{}"}


def test_a_demanded_call_ends_an_answer_as_any_other() -> None:
    for reason, expected in (("stop", "tool_calls"), ("length", "length")):
        answer = ChatAnswer()
        call = {"id": "a", "function": {"name": "f", "arguments": ""}}
        answer.take({"choices": [{"finish_reason": reason, "message": {"tool_calls": [call]}}]})
        assert answer.completion().finish_reason == expected


@pytest.mark.parametrize("said", [3, ["stop"], {"a": 1}])
def test_a_reason_that_is_no_text_is_no_answer(said: Any) -> None:
    with pytest.raises(ValueError, match="expected a completion"):
        ChatAnswer().take({"choices": [{"finish_reason": said, "message": {"content": "a"}}]})


@pytest.mark.parametrize("count", [None, -1, 2**31, 1e300, "7"])
def test_a_count_that_is_none_is_not_known(count: Any) -> None:
    answer = ChatAnswer()
    usage = {"prompt_tokens": count, "completion_tokens": 2**31 - 1}
    answer.take({"choices": [{"message": {"content": "a"}}], "usage": usage})
    assert answer.completion() == Completion("a", "", -1, 2**31 - 1)


async def test_a_streamed_answer_is_the_same_in_pieces(server: OpenAIServer) -> None:
    llm = client(server)
    pieces, completion = await streamed(llm, "two words")
    assert pieces == ["an ", "answer ", "of ", "five ", "words"]
    assert completion == await ask(llm, "two words")
    assert [body.get("stream") for _, body in server.requests] == [True, None]


async def test_an_answer_without_usage_has_no_counts(server: OpenAIServer) -> None:
    llm = client(server, extra_body={"stream_options": {}})
    assert (await streamed(llm, "hello"))[1] == Completion(server.text, "stop", -1, -1)


async def test_requests_one_after_the_other_share_a_connection(server: OpenAIServer) -> None:
    llm = client(server)
    for _ in range(3):
        await ask(llm, "hello")
        await streamed(llm, "hello")
    assert len(server.peers) == 1


async def test_requests_run_at_the_same_time(server: OpenAIServer) -> None:
    llm = client(server)
    hanging = [asyncio.ensure_future(ask(llm, f"HANG r{n}")) for n in range(150)]
    while len(server.requests) < 150:
        await asyncio.sleep(0.01)
    assert (await ask(llm, "hello")).text == server.text
    for one in hanging:
        one.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert {server.left.get(timeout=30) for _ in hanging} == {f"r{n}" for n in range(150)}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_request_reaches_the_server(server: OpenAIServer, stream: bool) -> None:
    llm, begun = client(server), asyncio.Event()

    def take(piece: str) -> None:
        begun.set()

    text = messages("HANG here")
    asking = asyncio.ensure_future(llm.generate("r", text, SAMPLING, take if stream else None))
    if stream:
        await begun.wait()
    while not server.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert server.left.get(timeout=30) == "here"


# What goes wrong


def words_of_others() -> Sequence[bytes]:
    said = (
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "Input length (11680) exceeds model's maximum context length (4096).",
        "The decoder prompt (length 9254) is longer than the maximum model length of 4096.",
        "max_tokens must be at least 1, got -7584.",
        "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).",
        "The sum of prompt length (9000), query length (1) should not exceed max_num_tokens (8192)",
        "Prompt length (9000) exceeds maximum input length (8192). Set log level to info",
        "the request exceeds the available context size. try increasing the context size",
        "Requested tokens (4097) exceed context window of 2048",
    )
    nested = [orjson.dumps({"error": {"message": one, "code": 400}}) for one in said]
    flat = orjson.dumps({"object": "error", "message": said[4], "code": 400})
    coded = orjson.dumps({"error": {"message": "too long", "code": "context_length_exceeded"}})
    return [*nested, flat, coded]


@pytest.mark.parametrize("body", words_of_others())
async def test_a_prompt_that_is_too_long_is_known(server: OpenAIServer, body: bytes) -> None:
    server.error = body
    with pytest.raises(ContextLengthError, match=r"^big: "):
        await ask(client(server), "STATUS-400")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error": {"message": "bad temperature"}}', "big: bad temperature"),
        (422, b'{"detail": [{"loc": ["body"], "msg": "bad"}]}', "big: .*'msg': 'bad'"),
        (413, b"<html>too large</html>", "big: refused with status 413"),
    ],
)
async def test_what_the_server_refuses_is_an_invalid_request(
    server: OpenAIServer, status: int, body: bytes, message: str
) -> None:
    server.error = body
    with pytest.raises(InvalidRequestError, match=message) as got:
        await ask(client(server), f"STATUS-{status}")
    assert type(got.value) is InvalidRequestError


@pytest.mark.parametrize("status", [402, 408, 409, 418, 429, 500, 502, 503, 529])
async def test_what_may_work_later_is_unavailable(server: OpenAIServer, status: int) -> None:
    for call in (ask, streamed):
        with pytest.raises(UnavailableError, match=rf"^big: status {status}: told to fail$"):
            await call(client(server), f"STATUS-{status}")
    assert len(server.requests) == 2  # nothing is sent again


@pytest.mark.parametrize(
    ("status", "setting"),
    [(301, "llms.url"), (307, "llms.url"), (403, "llms.api_key"), (405, "llms.url")],
)
async def test_what_is_configured_wrongly_is_named(
    server: OpenAIServer, status: int, setting: str
) -> None:
    with pytest.raises(UnavailableError, match=rf"status {status}.*; correct {setting}$"):
        await ask(client(server), f"STATUS-{status}")


async def test_another_model_or_field_is_named(server: OpenAIServer) -> None:
    with pytest.raises(UnavailableError, match=r"the LLM 'big' at .*llms\.remote_model or llms"):
        await ask(client(server, remote_model=""), "hello")
    with pytest.raises(UnavailableError, match=r"correct llms\.remote_model or llms\.url"):
        await ask(client(server, url=f"{server.url}/v2"), "hello")
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.error = orjson.dumps({"error": {"message": said, "code": "unsupported_parameter"}})
    with pytest.raises(UnavailableError, match=r"correct llms\.max_tokens_field"):
        await ask(client(server), "STATUS-400")


@pytest.mark.parametrize(("key", "got"), [("sk-wrong", "another"), ("", "none")])
async def test_a_wrong_key_names_its_setting_and_not_itself(
    server: OpenAIServer, key: str, got: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    for call in (OpenAIClient.check, lambda llm: ask(llm, "hello")):
        with pytest.raises(UnavailableError, match=rf"got {got}.*correct llms\.api_key$") as error:
            await call(client(server, api_key=key))
        assert "sk-" not in str(error.value)
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert (await ask(client(server, api_key_file=tmp_path / "key"), "hello")).text
    (tmp_path / "key").write_text("sk-wrong")
    with pytest.raises(UnavailableError, match=r"correct llms\.api_key_file$"):
        await ask(client(server, api_key_file=tmp_path / "key"), "hello")
    server.error = orjson.dumps({"error": {"message": f"you sent {KEY}"}})
    with pytest.raises(UnavailableError, match=r"you sent \*\*\*"):
        await ask(client(server, api_key=KEY), "STATUS-500")
    assert "sk-" not in caplog.text


async def test_an_error_in_a_stream_ends_it(server: OpenAIServer) -> None:
    pieces: list[str] = []
    for status, kind in ((500, UnavailableError), (400, InvalidRequestError)):
        with pytest.raises(kind, match="told to fail"):
            await client(server).generate(
                "r", messages(f"LATE-{status}"), SAMPLING, lambda piece: pieces.append(piece.text)
            )
    assert pieces == ["an "] * 2


@pytest.mark.parametrize("call", [ask, streamed])
async def test_a_dropped_connection_is_unavailable(server: OpenAIServer, call: Any) -> None:
    with pytest.raises(UnavailableError, match=r"^big: "):
        await call(client(server), "DROP")


async def test_a_server_that_is_away_is_unavailable_until_it_is_back(server: OpenAIServer) -> None:
    llm = client(server)
    await ask(llm, "hello")
    server.stop()
    for call in (llm.check, lambda: ask(llm, "hello")):
        with pytest.raises(UnavailableError, match=f"^big: {server.url}: Cannot connect"):
            await call()
    server.start()
    await llm.check()
    assert (await ask(llm, "hello")).text == server.text


async def test_a_connection_that_the_server_closes_meanwhile_is_opened_again_once(
    server: OpenAIServer,
) -> None:
    llm = client(server)
    await ask(llm, "hello")
    server.closing = 1
    assert (await ask(llm, "hello")).text == server.text
    assert len(server.peers) == 2
    server.closing = 2
    with pytest.raises(UnavailableError, match=r"^big: .*disconnected"):
        await ask(llm, "hello")
    assert server.closing == 0


async def test_a_server_that_does_not_answer_in_time_is_unavailable(server: OpenAIServer) -> None:
    for call in (ask, streamed):
        with pytest.raises(UnavailableError, match=r"big: no whole answer in 0\.3 s"):
            await call(client(server, timeout_s=0.3), "HANG")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', NO_TEXT])
async def test_what_is_no_completion_is_unavailable(server: OpenAIServer, body: bytes) -> None:
    server.error = body or b" "
    for call in (ask, streamed):
        with pytest.raises(UnavailableError, match=r"^big: .*expected "):
            await call(client(server), "STATUS-200")


# TLS


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return authority(tmp_path_factory.mktemp("tls"))


def tls(ca: Certificate, clients: bool = False) -> ssl.SSLContext:
    """A server's; with ``clients`` it wants a certificate of them."""
    own = certified(ca, "server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca.certificate)
    context.load_cert_chain(own.certificate, own.key)
    context.verify_mode = ssl.CERT_REQUIRED if clients else ssl.CERT_NONE
    return context


async def test_a_server_is_checked_with_the_configured_authority(ca: Certificate) -> None:
    server = OpenAIServer(tls(ca))
    try:
        llm = client(server, tls_ca=ca.certificate)
        assert server.url.startswith("https://")
        assert (await ask(llm, "hello")).text == (await streamed(llm, "hello"))[1].text
        with pytest.raises(UnavailableError, match=r"no TLS connection to .*llms\.tls_ca"):
            await ask(client(server), "hello")
        with pytest.raises(UnavailableError, match=r"^big: "):
            await ask(client(server, url=server.url.replace("https", "http")), "hello")
    finally:
        server.close()


async def test_a_server_may_want_a_certificate(ca: Certificate) -> None:
    server, own = OpenAIServer(tls(ca, clients=True)), certified(ca, "client")
    try:
        files = {"tls_certificate": own.certificate, "tls_key": own.key}
        assert (await ask(client(server, tls_ca=ca.certificate, **files), "hello")).text
        with pytest.raises(UnavailableError, match=r"^big: "):
            await ask(client(server, tls_ca=ca.certificate), "hello")
    finally:
        server.close()


@pytest.mark.parametrize(
    ("setting", "content", "message"),
    [
        ("tls_ca", None, r"LLM big: llms\.tls_ca: expected a readable file, got .*: No such file"),
        ("tls_ca", "no PEM", r"llms\.tls_ca: expected certificates in PEM format"),
        ("tls_key", "no PEM", r"llms\.tls_certificate and llms\.tls_key: expected a certificate"),
        ("api_key_file", None, r"llms\.api_key_file: expected a readable file"),
        ("api_key_file", " \n", r"llms\.api_key_file: expected a key in .*, got an empty file"),
        ("api_key_file", "two\nlines", r"llms\.api_key_file: expected one line of ASCII"),
        ("api_key_file", "schlüssel", r"llms\.api_key_file: expected one line of ASCII"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    ca: Certificate, tmp_path: Path, setting: str, content: str | None, message: str
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    given: dict[str, Any] = {"url": "https://localhost:1/v1", setting: file}
    if setting == "tls_key":
        given["tls_certificate"] = ca.certificate
    llm = LLMSettings(name="big", contract="openai", cost=1.0, takes_examples=False, **given)
    with pytest.raises(ConfigurationError, match=message):
        OpenAIClient(llm, 1.0)


def test_an_event_loop_that_ends_closes_the_connections(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a command; aiohttp complains of a session that was left open."""
    llm = client(server)
    for _ in range(2):
        assert asyncio.run(ask(llm, "hello")).text == server.text
    del llm
    assert caplog.text == ""


def test_a_stored_tool_call_that_is_no_json_is_text() -> None:
    rendered = OpenAIMessages().render([Turn("assistant", "a", tool_calls="{")])
    assert json.loads(rendered) == [{"role": "assistant", "content": "a{"}]
