"""Feedback in a real Triton whose learning log is a real Redis server."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dummy_llm import REPOSITORY, core_with, dummy_llm
from echolm.bandit.features import DIMENSION
from echolm.learning.tokens import FeedbackTokens
from echolm.primitives import Decision
from echolm.serving.serve import Endpoints, LocalServer
from echolm.settings import FeedbackSettings, LearningSettings, Settings
from learning_process import put_damaged
from pydantic import SecretStr
from redis_server import RedisServer
from triton_calls import Caller, eventually, refusal, samples, text

pytestmark = pytest.mark.timeout(240)

KEY = "a key that these tests share with the server"
TTL_S = 86_400
TOKENS = FeedbackTokens(KEY, TTL_S)
EVERY = 5


@pytest.fixture(scope="module")
def settings(
    server_settings: Settings, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    return server_settings.model_copy(
        update={
            "data_dir": tmp_path_factory.mktemp("feedback") / "data",
            "event_log": redis_server.url,
            "feedback": FeedbackSettings(signing_key=SecretStr(KEY), token_ttl_s=TTL_S),
            "learning": LearningSettings(snapshot_every=EVERY, redis_timeout_s=1.0),
        }
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("models")
    shutil.copytree(REPOSITORY / "local" / "embedder", into / "embedder")
    for name in ("small_llm", "large_llm"):
        dummy_llm(name, {"text": f"{name} says so"}, into)
    return into


def start(settings: Settings, models: Path) -> tuple[LocalServer, Endpoints]:
    options = core_with(models)
    server = LocalServer(settings, options)
    try:
        return server, server.start()
    except BaseException:
        server.stop()
        raise


@pytest.fixture(scope="module")
def endpoints(settings: Settings, models: Path) -> Iterator[Endpoints]:
    server, endpoints = start(settings, models)
    yield endpoints
    server.stop()


@pytest.fixture
def caller(endpoints: Endpoints) -> Caller:
    return Caller(endpoints)


def learnt(endpoints: Endpoints, result: str = "applied", model: str = "router") -> float:
    return samples(endpoints, "echolm_learning_events_total", result=result, model=model)


def token(
    monkeypatch: pytest.MonkeyPatch | None = None, age_s: float = 0, tenant: str = "public"
) -> bytes:
    """A token of an answer that was given so long ago."""
    x = np.zeros(DIMENSION, dtype=np.float32)
    decision = Decision(uuid.uuid4().hex, tenant, "small_llm", x, 0.5, 0.5, ())
    if monkeypatch is None:
        return TOKENS.dump(decision).encode()
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - age_s)
        return TOKENS.dump(decision).encode()


def test_late_feedback_is_learnt_and_expired_feedback_refused(
    endpoints: Endpoints, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = learnt(endpoints)
    assert caller.rate(token(monkeypatch, TTL_S - 600), score=0.5)
    assert eventually(lambda: learnt(endpoints) == before + 1)
    expired = token(monkeypatch, TTL_S + 600)
    refused = "StatusCode.INVALID_ARGUMENT [invalid_request]"
    for options in ({"score": 0.5}, {"preferred_over": token()}):
        got = refusal(lambda options=options: caller.rate(expired, **options))  # type: ignore[misc]
        assert got.startswith(f"{refused} feedback_token: expected a token at")
    got = refusal(lambda: caller.rate(token(), preferred_over=expired))
    assert got.startswith(f"{refused} preferred_over: expected a token at")
    assert learnt(endpoints) == before + 1


def test_foreign_tenants_tokens_are_refused(endpoints: Endpoints, caller: Caller) -> None:
    theirs = token(tenant="theirs")
    for options in (
        {"score": 0.5, "tenant": "mine"},
        {"preferred_over": token(tenant="mine"), "tenant": "mine"},
        {"preferred_over": token(tenant="mine"), "tenant": "theirs"},
        {"preferred_over": token(tenant="mine")},
    ):
        got = refusal(lambda options=options: caller.rate(theirs, **options))  # type: ignore[misc]
        assert got.startswith("StatusCode.INVALID_ARGUMENT ")
        assert "tenant" in got
    assert caller.rate(theirs, score=0.5, tenant="theirs")
    assert caller.rate(theirs, score=0.5)


def test_duplicates_count_once(caller: Caller) -> None:
    def expected() -> float:
        asked: dict[str, Any] = {"llm": "small_llm", "cache_control": "no-cache"}
        return float(caller.ask("duplicates", **asked)["predicted_quality"].item())

    asked = caller.ask("duplicates", llm="small_llm", cache_control="no-cache")
    answer = asked["feedback_token"].item()
    before = expected()
    assert caller.rate(answer, score=1.0)
    assert eventually(lambda: expected() > before)
    once = expected()
    for _ in range(20):
        assert caller.rate(answer, score=1.0)
    time.sleep(1)  # several rounds of learning
    assert expected() == once


def test_damaged_and_unknown_events_are_counted_and_learning_goes_on(
    endpoints: Endpoints, caller: Caller, settings: Settings
) -> None:
    applied, skipped, ignored = (learnt(endpoints, r) for r in ("applied", "skipped", "ignored"))
    put_damaged(settings.event_log)
    assert caller.rate(token(), score=0.5)
    assert eventually(lambda: learnt(endpoints) == applied + 1)
    assert learnt(endpoints, "skipped") == skipped + 2
    assert learnt(endpoints, "ignored") == ignored + 1


def test_all_models_learn_and_a_restarted_server_knows_what_the_first_learnt(
    endpoints: Endpoints, caller: Caller, settings: Settings, models: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"llm": "small_llm", "cache_control": "no-cache"}
    models_that_learn = ("router", "retriever")
    before = {model: learnt(endpoints, model=model) for model in models_that_learn}
    for _ in range(EVERY + 2):
        answer = caller.ask("remember me", **asked)
        assert caller.rate(answer["feedback_token"].item(), score=0.0)
    assert eventually(
        lambda: all(learnt(endpoints, model=m) >= before[m] + EVERY + 2 for m in before)
    )
    expected = caller.ask("remember me", **asked)["predicted_quality"].item()
    other = settings.model_copy(update={"data_dir": tmp_path / "replica"})
    server, replica = start(other, models)
    try:
        got = Caller(replica).ask("remember me", **asked)["predicted_quality"].item()
        assert got == expected
        assert eventually(lambda: learnt(replica) == learnt(endpoints))
    finally:
        server.stop()


def test_without_redis_answers_come_and_ratings_are_refused_until_it_is_back(
    endpoints: Endpoints, caller: Caller, redis_server: RedisServer
) -> None:
    before = learnt(endpoints)
    redis_server.kill()
    try:
        assert text(caller.ask("are you there?"), "degraded") == ""
        got = refusal(lambda: caller.rate(token(), score=0.5))
        assert got.startswith("StatusCode.UNAVAILABLE [unavailable] learning log 127.0.0.1:")
        assert got.endswith("try again")
    finally:
        redis_server.start()
    assert caller.rate(token(), score=0.5)
    assert eventually(lambda: learnt(endpoints) == before + 1)
