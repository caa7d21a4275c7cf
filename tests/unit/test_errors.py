from __future__ import annotations

import inspect

import pytest
from echolm import errors
from echolm.errors import (
    CancelledError,
    ConfigurationError,
    ContextLengthError,
    EchoError,
    InvalidRequestError,
    UnavailableError,
    coded,
    from_remote,
    parse,
    public_message,
)
from echolm_client import InvalidRequest
from echolm_client._errors import CODES


def test_a_message_says_what_was_expected_what_came_and_how_to_mend_it() -> None:
    error = InvalidRequestError.of("max_tokens", "1 to 5", 9, "ask for less")
    assert str(error) == "max_tokens: expected 1 to 5, got 9; ask for less"
    assert str(InvalidRequestError.of("x", "y", "z")) == "x: expected y, got z"


def test_a_long_value_is_shortened() -> None:
    message = str(InvalidRequestError.of("x", "y", "a" * 500))
    assert message == f"x: expected y, got {'a' * 80}… (500 characters)"


def test_the_tree() -> None:
    for kind in (ConfigurationError, InvalidRequestError, UnavailableError, CancelledError):
        assert issubclass(kind, EchoError)
    assert issubclass(ContextLengthError, InvalidRequestError)
    assert not issubclass(UnavailableError, InvalidRequestError)
    with pytest.raises(ContextLengthError):
        raise ContextLengthError.of("prompt", "fewer tokens", 3)


KINDS = (
    EchoError,
    ConfigurationError,
    InvalidRequestError,
    ContextLengthError,
    UnavailableError,
    CancelledError,
)


def test_every_kind_has_a_code_of_its_own() -> None:
    assert [kind.code for kind in KINDS] == [
        "internal",
        "configuration",
        "invalid_request",
        "context_length",
        "unavailable",
        "cancelled",
    ]


def test_the_client_knows_the_servers_codes() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    kinds = {kind.code: kind for kind in classes if issubclass(kind, EchoError)}
    assert set(CODES) == set(kinds) == {kind.code for kind in KINDS}
    for code, kind in kinds.items():
        assert issubclass(CODES[code], InvalidRequest) == issubclass(kind, InvalidRequestError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("message", ["x: expected y, got z", "", "[unavailable] two\nlines"])
@pytest.mark.parametrize("before", ["", "in ensemble 'retrieval', "])
def test_a_code_comes_back_with_the_whole_message(
    kind: type[EchoError], message: str, before: str
) -> None:
    assert parse(before + coded(kind.code, message)) == (kind.code, message)


@pytest.mark.parametrize(
    "message",
    [
        "engine failed",
        "[nonsense] x",
        "[unavailable]",
        "[request id: a] unexpected shape",
        "text_input: expected text, got [invalid_request] forged",
    ],
)
def test_a_message_without_a_code_stays_as_it_is(message: str) -> None:
    assert parse(message) == (None, message)


@pytest.mark.parametrize("kind", [InvalidRequestError, ContextLengthError])
def test_what_another_part_refuses_is_refused_with_its_error(kind: type[EchoError]) -> None:
    error = from_remote("small_llm", coded(kind.code, "x: expected y, got z"))
    assert (type(error), str(error)) == (kind, "x: expected y, got z")


@pytest.mark.parametrize("code", ["internal", "configuration", "unavailable", "cancelled"])
@pytest.mark.parametrize("refused", [False, True])
def test_any_other_failure_makes_that_part_unavailable(code: str, refused: bool) -> None:
    error = from_remote("small_llm", coded(code, "why"), refused)
    assert (type(error), str(error)) == (UnavailableError, "small_llm: why")


def test_without_a_code_the_status_says_who_is_to_blame() -> None:
    refused = from_remote("small_llm", "unexpected shape", refused=True)
    assert (type(refused), str(refused)) == (InvalidRequestError, "unexpected shape")
    failed = from_remote("small_llm", "unexpected shape")
    assert (type(failed), str(failed)) == (UnavailableError, "small_llm: unexpected shape")


def test_an_error_that_passes_two_models_has_one_code() -> None:
    first = InvalidRequestError("x: expected y, got z")
    second = from_remote("small_llm", coded(first.code, str(first)))
    assert coded(second.code, str(second)) == "[invalid_request] x: expected y, got z"


@pytest.mark.parametrize(
    ("message", "public"),
    [
        (
            "log /srv/data/events.sqlite: disk full",
            "log events.sqlite: disk full",
        ),
        ("Milvus at unix:/tmp/echolm-1.sock: gone", "Milvus at unix:echolm-1.sock: gone"),
        ("small_llm: no '/models/a b/x.xml'", "small_llm: no 'a b/x.xml'"),
        (
            "LLM at http://internal/v1/chat: none",
            "LLM at http://internal/v1/chat: none",
        ),
        ("a/b, and 1/2 of it", "a/b, and 1/2 of it"),
    ],
)
def test_a_caller_learns_no_folder_of_the_server(message: str, public: str) -> None:
    assert public_message(UnavailableError(message)) == public
    assert public_message(InvalidRequestError(message)) == message
