"""Judging in a real Triton with the real pair: the router learns without any caller's rating."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dummy_llm import REPOSITORY, core_with, dummy_llm
from echolm.errors import EchoError
from echolm.serving import Endpoints, ServeOptions, running_server
from echolm.settings import LLMSettings, Settings
from echolm.settings.loading import load_settings
from echolm_lab.tasks import Workload, grade
from triton_calls import Caller, eventually, samples, text

pytestmark = pytest.mark.timeout(240)

GOOD, BAD = "a good answer", "a bad answer"
# Compares two answers as an LLM does that knows which is good; its own answers are.
JUDGE = {"text": f"{GOOD} [[B]]", "if_contains": f"<answer_a>\n{GOOD}", "then_text": "[[A]]"}
WARM_UP = 4

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ServeOptions(http_port=0, grpc_port=0, metrics_port=0)
ITEMS = Workload(seed=0).stream(12, seed=31)
JUDGES: list[dict[str, Any]] = [
    {"kind": "grader", "grader": f"{ROOT}/scripts/echolm_lab/tasks/judging.py:grade"},
    {"kind": "similarity"},
]


@pytest.fixture(scope="module", params=JUDGES, ids=lambda judge: judge["kind"])
def judged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Endpoints, Settings]]:
    """A server that judges all answers, and its settings."""
    settings = judging_all(request.param, tmp_path_factory.mktemp("judged"))
    with running_server(settings, OPTIONS) as endpoints:
        yield endpoints, settings


def judging_all(judge: dict[str, Any], folder: Path) -> Settings:
    model_dir = ROOT / "build" / "embedder"
    defaults = load_settings()
    return Settings.model_validate(
        {
            **defaults.model_dump(),
            "data_dir": folder / "data",
            "embedding": {**defaults.embedding.model_dump(), "model_dir": model_dir},
            "routing": {**defaults.routing.model_dump(), "warm_up_ratings": 0},
            "judging": {
                "sample_share": 1.0,
                "solicited_share": 0.0,
                "max_concurrent": 16,
                **judge,
            },
        }
    )


def ratings(settings: Settings, kind: str = "rating") -> list[dict[str, Any]]:
    with sqlite3.connect(settings.data_dir / "events.sqlite") as log:
        rows = log.execute("SELECT body FROM events WHERE kind = ?", (kind,)).fetchall()
    return [json.loads(body) for (body,) in rows]


def judgements(endpoints: Endpoints, **labels: str) -> float:
    return samples(endpoints, "echolm_judgements_total", **labels)


def test_answers_are_judged_and_the_router_learns(judged: tuple[Endpoints, Settings]) -> None:
    endpoints, settings = judged
    kind, caller = settings.judging.kind, Caller(endpoints)
    answers = [caller.ask(item.text, tenant="judged", max_tokens=400) for item in ITEMS]
    assert all(text(answer, "degraded") == "" for answer in answers)
    n = len(ITEMS)
    assert eventually(lambda: judgements(endpoints, kind=kind) >= n)
    assert judgements(endpoints, kind=kind, result="rated") == n
    assert samples(endpoints, "echolm_judge_tokens_total", kind=kind) > 0
    assert samples(endpoints, "echolm_judge_seconds_total", kind=kind) > 0

    events = ratings(settings)
    assert {e["source"] for e in events} == {f"judge:{kind}"}
    small = [e for e in events if e["llm"] == "small_llm"]
    assert len(small) == n  # judged on every request, whoever answered
    assert all(0 <= e["score"] <= 1 for e in events)
    assert sum(e["judging"]["tokens"] for e in events) == pytest.approx(
        samples(endpoints, "echolm_judge_tokens_total", kind=kind)
    )
    assert eventually(
        lambda: (
            samples(endpoints, "echolm_learning_events_total", result="applied", model="router")
            >= len(events)
        )
    )

    if kind == "grader":
        large = [e["score"] for e in events if e["llm"] == "large_llm"]
        assert len(large) == n
        assert sum(large) / n > 0.9  # the large LLM knows this workload
        given = {e["score"] for e in events if not e["judging"]["asked"]}
        expected = {
            grade(item, text(answer, "text_output"))
            for item, answer in zip(ITEMS, answers, strict=True)
        }
        assert given == expected
    else:
        assert len(events) == n  # agreement with the reference says nothing of the reference


def test_what_a_caller_keeps_to_itself_is_not_judged(judged: tuple[Endpoints, Settings]) -> None:
    endpoints, settings = judged
    caller = Caller(endpoints)
    before, events = judgements(endpoints), len(ratings(settings))
    options: dict[str, Any] = {"max_tokens": 16, "tenant": "private"}
    caller.ask(ITEMS[0].text, cache_control="no-store", **options)
    caller.ask(ITEMS[0].text, llm="small_llm", **options)
    # The next one is judged, so those before it would have been.
    caller.ask(ITEMS[0].text, tenant="judged", max_tokens=16)
    assert eventually(lambda: judgements(endpoints) > before)
    assert judgements(endpoints) == before + 1
    assert all(e["tenant"] == "judged" for e in ratings(settings)[events:])


@pytest.mark.parametrize("answer", [GOOD, BAD])
def test_a_new_pair_is_learnt_without_ratings(answer: str, tmp_path: Path) -> None:
    """The default settings: the large LLM judges; the small one is shadowed before it is used."""
    models = tmp_path / "models"
    shutil.copytree(REPOSITORY / "local" / "embedder", models / "embedder")
    dummy_llm("small_llm", {"text": answer}, models)
    dummy_llm("large_llm", JUDGE, models)
    defaults = load_settings()
    settings = Settings.model_validate(
        {
            **defaults.model_dump(),
            "data_dir": tmp_path / "data",
            "embedding": {
                **defaults.embedding.model_dump(),
                "model_dir": ROOT / "build" / "embedder",
            },
            # The same request comes again and again, and an LLM is to answer it.
            "routing": {
                **defaults.routing.model_dump(),
                "warm_up_ratings": WARM_UP,
                "reuse_error": 0.0,
            },
            "llms": (
                LLMSettings(
                    chat_template="echolm", name="small_llm", cost=0.1, takes_examples=True
                ),
                LLMSettings(
                    chat_template="echolm", name="large_llm", cost=1.0, takes_examples=False
                ),
            ),
        }
    )
    options = core_with(models)
    with running_server(settings, options) as endpoints:
        caller, numbers = Caller(endpoints), itertools.count()

        def held(cell: str) -> float:
            labels = {"llm": "small_llm", "examples": cell, "model": "router"}
            return samples(endpoints, "echolm_warm_up", **labels)

        def ask() -> str:
            number = next(numbers)  # else a stored answer would be given again
            return text(caller.ask(f"How do I reset the password of account {number}?"), "llm")

        def warm() -> bool:
            ask()
            return not held("with") and not held("without")

        assert eventually(lambda: held("with") and held("without"))
        assert ask() == "large_llm"
        assert eventually(warm)
        answered = [ask() for _ in range(40)]
        events = ratings(settings, "preference")
        shadows = [e for e in events if e["judging"]["reason"] == "shadow"]
        sides = [e["better"] if e["better"]["llm"] == "small_llm" else e["worse"] for e in shadows]
        assert {bool(side["example_ids"]) for side in sides} == {True, False}
        assert {e["source"] for e in events} == {"judge:llm"}
        assert {e["share"] for e in events} == {0.5 if answer == GOOD else 1.0}
        if answer == GOOD:
            assert "small_llm" in answered
        else:
            assert {e["better"]["llm"] for e in events} == {"large_llm"}
            assert answered.count("small_llm") < 10
        assert samples(endpoints, "echolm_judge_tokens_total", reason="shadow") > 0
        # The judge takes the first good answer.
        said, other = "consistent", "inconsistent"
        if answer == GOOD:
            said, other = other, said
        assert samples(endpoints, "echolm_judge_orders_total", result=said) >= 2 * WARM_UP
        assert samples(endpoints, "echolm_judge_orders_total", result=other) == 0


def test_a_grader_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    settings = judging_all({"kind": "grader", "grader": "no_such_module:grade"}, tmp_path)
    with (
        pytest.raises(EchoError, match=r"judging\.grader: expected module:function"),
        running_server(settings, OPTIONS),
    ):
        pass
