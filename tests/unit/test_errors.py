from __future__ import annotations

import pytest
from echolm.errors import (
    CancelledError,
    ConfigurationError,
    ContextLengthError,
    EchoError,
    InvalidRequestError,
    UnavailableError,
)


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
