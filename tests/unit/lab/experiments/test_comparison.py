"""The whole comparison, its table and its plot, on a server of fakes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm.judges.base import Judgement
from echolm.settings import Settings
from echolm.store.base import Example, scope_key
from echolm.testing.store import InMemoryStore
from echolm_client import Answer
from echolm_lab.experiments.bench import Site
from echolm_lab.experiments.comparison import Plan, PolicyComparison
from echolm_lab.experiments.scoring import ItemScores, JudgedScores, Scoring
from echolm_lab.policies.base import Asking
from echolm_lab.policies.nearest import NearestAnswers
from echolm_lab.report.tables import print_comparison
from echolm_lab.tasks.requests import Asked, FileQuestions, divide, exact
from numpy.typing import NDArray
from rich.console import Console

POLICIES = ["always_large", "always_small", "copy_nearest", "semantic_cache", "echolm"]
SYSTEM = "Be brief."


@dataclass
class Server:
    """Stands for both clients of a server: the large LLM is right, the small one repeats."""

    ratings: list[float] = field(default_factory=list)

    async def generate(self, text: str, **options: Any) -> Answer:
        assert (options["system_prompt"], options["max_tokens"]) == (SYSTEM, 7)
        llm = "large_llm" if options["llm"] == "auto" else options["llm"]
        answer = text.replace("request", "answer") if llm == "large_llm" else text
        return Answer(answer, llm, (), 0.9, False, "token", "", "stop", 3, 3, 0.1)

    async def rate(self, answer: str, score: float) -> bool:
        self.ratings.append(score)
        return True

    async def stats(self) -> Server:
        return self

    def value(self, name: str) -> float:
        return 0.0

    async def infer(self, model: str, inputs: list[Any]) -> Server:
        return self

    def as_numpy(self, name: str) -> NDArray[Any]:
        return np.array([[1.0, 0.0]], dtype=np.float32)


class LongerIsBetter:
    """A judge."""

    kind, scale = "llm", "preference"

    async def judge(self, request: str, answer: str, reference: str | None) -> Judgement:
        return Judgement(float(len(answer) > len(reference or "")))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bench", "comparison"):
        monkeypatch.setattr(f"echolm_lab.experiments.{module}.FLUSH_S", 0.0)


def questions() -> FileQuestions:
    asked = [Asked(f"request {n}", f"answer {n}", exact) for n in range(60)]
    return divide(asked, 1, 20, 10, 10)


async def compare(scoring: Scoring, rated: float) -> tuple[dict[str, Any], Server]:
    server, store, asked = Server(), InMemoryStore(2), questions()
    scope = scope_key("public", SYSTEM)
    copied = Example(1, "request", asked.items[0].reference, "public", scope, "l", 0.9, 1, 1)
    store.upsert([copied], np.array([[1.0, 0.0]], np.float32))
    client: Any = server
    endpoints: Any = None
    nearest = NearestAnswers(client, store, SYSTEM)
    console = Console(width=80, quiet=True)
    site = Site(Settings(), endpoints, client, client, console, 4, nearest, Asking(SYSTEM, 7))
    plan = Plan(rated=rated, latency_seconds=0.001)
    report = await PolicyComparison(site, plan, None, asked, scoring).run()
    report["past"] |= {"history": 1, "of": "reference answers"}
    return report, server


async def test_all_policies_are_scored_by_the_references() -> None:
    report, server = await compare(ItemScores("Score: exact."), 1.0)
    rows = report["policies"]
    assert list(rows) == POLICIES
    assert {row["requests"] for row in rows.values()} == {9}  # 15% of 60
    assert {row["failed"] for row in rows.values()} == {0}
    scores = {name: row["mean_score"] for name, row in rows.items()}
    assert scores["always_large"] == scores["echolm"] == 1.0
    assert scores["always_small"] == 0.0
    assert scores["copy_nearest"] == scores["semantic_cache"] == pytest.approx(1 / 9)
    assert rows["copy_nearest"]["offload_share"] == 1.0
    assert rows["echolm"]["win_rate"] == rows["always_large"]["win_rate"] == 0.5
    assert server.ratings == [1.0] * 10


async def test_all_policies_are_compared_by_a_judge() -> None:
    judge: Any = LongerIsBetter()
    report, server = await compare(JudgedScores(judge), 0.0)
    rows = report["policies"]
    assert rows["always_large"]["win_rate"] == 0.5
    assert rows["echolm"]["mean_score"] == 0.5  # the same answers
    assert rows["always_small"]["win_rate"] == 1.0  # "request 1" is longer than "answer 1"
    assert 0 <= rows["copy_nearest"]["win_rate"] <= 1
    assert server.ratings == []


async def test_the_table_is_narrow_and_says_what_it_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report, _ = await compare(ItemScores("Score: exact."), 1.0)
    for row in report["policies"].values():
        row["throughput"] = 12.3  # fakes are faster than anything that has to fit
    print_comparison(Console(width=80), report)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines()) and "…" not in out
    for title in ("large LLM alone", "nearest answer", "EchoLM"):
        assert f" {title} " in out
    said = " ".join(out.split())
    assert "Past: 1 reference answers, then 10 of EchoLM with 10 ratings" in said
    assert "Score: exact." in said


async def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from echolm_lab.report.plots import draw_comparison

    report, _ = await compare(ItemScores(), 1.0)
    draw_comparison(report, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
