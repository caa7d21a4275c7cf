from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.learning.tokens import FeedbackTokens
from echolm.primitives import Decision
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DECISION = Decision(
    "id-1", "acmé", "small_llm", np.array([1, 0.25, -3], dtype=np.float32), 0.75, 0.5, (7, 2**62)
)
TOKENS = FeedbackTokens("key", 60)


def test_a_token_brings_back_the_decision() -> None:
    found = TOKENS.load(TOKENS.dump(DECISION))
    assert found.context.tolist() == [1, 0.25, -3]
    assert found.context.dtype == np.float32
    for name in ("request_id", "tenant", "llm", "propensity", "quality", "example_ids"):
        assert getattr(found, name) == getattr(DECISION, name)


@given(
    st.text(max_size=5),
    hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-100, 100, width=32)),
    st.floats(0, 1),
    st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple),
)
def test_any_decision_survives_the_round_trip(
    text: str,
    context: np.ndarray,  # type: ignore[type-arg]
    share: float,
    ids: tuple[int, ...],
) -> None:
    found = TOKENS.load(TOKENS.dump(Decision("i", text, text, context, share, share, ids)))
    assert found.context == pytest.approx(context, abs=0.05)
    assert (found.tenant, found.example_ids) == (text, ids)
    assert found.propensity == pytest.approx(share, abs=1e-4)


def test_a_token_is_short_enough_to_pass_around() -> None:
    context = np.random.default_rng(0).random(27).astype(np.float32)
    assert (
        len(TOKENS.dump(Decision("f" * 32, "public", "small_llm", context, 0.5, 0.5, (2**58,) * 4)))
        < 500
    )


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é€", "." * 300, "\x00"])
def test_what_we_did_not_sign_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequestError, match="feedback_token: expected a token that this"):
        TOKENS.load(token)


def test_any_altered_character_is_noticed() -> None:
    token = TOKENS.dump(DECISION)
    for i in range(len(token) - 1):  # the last one has spare bits
        other = "A" if token[i] != "A" else "B"
        with pytest.raises(InvalidRequestError):
            TOKENS.load(token[:i] + other + token[i + 1 :])


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(InvalidRequestError):
        FeedbackTokens("other", 60).load(TOKENS.dump(DECISION))


def test_an_expired_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    token = TOKENS.dump(DECISION)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 50)
    TOKENS.load(token)
    monkeypatch.setattr(time, "time", lambda: now + 62)
    with pytest.raises(InvalidRequestError, match="at most 60 s old, got an expired one"):
        TOKENS.load(token)


def test_without_a_key_nothing_starts() -> None:
    with pytest.raises(ConfigurationError, match=r"feedback\.signing_key: expected a secret"):
        FeedbackTokens("", 60)


def test_a_token_carries_the_llms_revision() -> None:
    assert TOKENS.load(TOKENS.dump(replace(DECISION, revision="v2"))).revision == "v2"


def test_a_token_from_before_there_were_revisions_is_still_good() -> None:
    serializer = TOKENS._serializer
    fields = serializer.loads(TOKENS.dump(DECISION))
    found = TOKENS.load(str(serializer.dumps(fields[:7])))
    assert (found.request_id, found.example_ids, found.revision) == ("id-1", (7, 2**62), "")
