from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm.errors import UnavailableError
from echolm.examples.admission import AdmissionPolicy
from echolm.examples.consistency import examine
from echolm.examples.deduplication import RequestIndex
from echolm.examples.importing import ImportCounts, Importer, Line, line_of_pair
from echolm.examples.pairs import Pair
from echolm.examples.statistics import StatisticsTable
from echolm.learning.sqlite_log import SQLiteEventLog
from echolm.settings import Settings
from echolm.store.base import NEVER, Example, scope_key
from echolm.testing.store import InMemoryStore
from numpy.typing import NDArray

SETTINGS = Settings()


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """All texts have one embedding, as long ones that begin alike have."""
    return np.tile(np.array([1, 0], np.float32), (len(texts), 1))


@dataclass
class Bench:
    """A store with its log, and ways to import into it."""

    store: InMemoryStore
    log: SQLiteEventLog
    statistics: StatisticsTable
    told: list[int] = field(default_factory=list)

    def take_in(
        self,
        *lines: Line,
        settings: Settings = SETTINGS,
        dry: bool = False,
        batch: int = 250,
    ) -> dict[str, int]:
        counts = ImportCounts(lambda line, message: self.told.append(line))
        deduplicate = settings.examples.deduplicate
        importer = Importer(
            self.store,
            self.log,
            AdmissionPolicy(settings),
            None if dry else embed,
            RequestIndex.of(self.store) if deduplicate else None,
            counts,
        )
        for start in range(0, len(lines), batch):
            importer.take_in(lines[start : start + batch])
        return {outcome.value: n for outcome, n in counts.outcomes.items() if n}

    @property
    def stored(self) -> list[tuple[str, str, str]]:
        return sorted((e.tenant, e.request, e.response) for e, _ in self.store.rows.values())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with (
        closing(SQLiteEventLog(tmp_path / "events.sqlite")) as log,
        closing(StatisticsTable(tmp_path / "s.sqlite", {"large_llm": 1.0}, 0.9)) as statistics,
    ):
        yield Bench(InMemoryStore(2), log, statistics)


def pairs(*texts: str, tenant: str = "t") -> list[Line]:
    """Lines of ``request=response``."""
    return [
        line_of_pair(number, Pair(*text.split("=", 1), tenant=tenant), SETTINGS)
        for number, text in enumerate(texts, 1)
    ]


def exported(id: int, request: str, **changes: Any) -> Line:
    tenant = changes.get("tenant", "t")
    example = Example(id, request, "a", tenant, scope_key(tenant, ""), "large_llm", 0.9, 1, 1)
    return Line(id, replace(example, **changes), np.array([0, 1], np.float32))


def test_a_pair_becomes_an_example_of_the_llm_that_others_are_compared_with() -> None:
    pair = Pair("q", "a", "t", "Be kind.", 0.75)
    example = line_of_pair(3, pair, SETTINGS).example
    assert (example.scope, example.source_llm) == (scope_key("t", "Be kind."), "large_llm")
    assert (example.quality, example.expires_at_ms, example.answer_keys) == (0.75, NEVER, "")


@pytest.mark.parametrize("batch", [1, 3, 250])
def test_no_request_is_stored_twice(bench: Bench, batch: int) -> None:
    texts = [f"request {n}=answer {n}" for n in range(20)]
    repeated = ["Request 3.=answer 3", "request 4=something else entirely"]
    lines = pairs(*texts, *repeated, *texts[:5])
    assert bench.take_in(*lines, batch=batch) == {"new": 20, "known": 6, "no better": 1}
    assert len(bench.store.rows) == 20
    assert not examine(bench.store, bench.statistics, bench.log, settle_s=0).any
    assert bench.take_in(*lines, batch=batch) == {"known": 26, "no better": 1}
    assert bench.take_in(*pairs("request 1=answer 1", tenant="other")) == {"new": 1}


def test_a_better_answer_takes_the_place_of_the_known_one(bench: Bench) -> None:
    bench.take_in(exported(5, "q", quality=0.5))
    assert bench.take_in(*pairs("Q=right")) == {"replaced": 1}
    assert bench.stored == [("t", "Q", "right")]
    assert not examine(bench.store, bench.statistics, bench.log, settle_s=0).any


def test_an_id_replaces_no_example_of_another_tenant_or_request(bench: Bench) -> None:
    bench.take_in(exported(5, "q"), exported(6, "p"))
    moved = [exported(5, "q", tenant="thief", response="b"), exported(6, "other request")]
    assert bench.take_in(*moved) == {"new": 2}
    assert bench.stored == [
        ("t", "other request", "a"),
        ("t", "p", "a"),
        ("t", "q", "a"),
        ("thief", "q", "b"),
    ]
    assert bench.store.rows[5][0].tenant == "t"
    assert bench.take_in(*moved) == {"known": 2}


def test_an_exported_example_comes_back_in_its_own_place(bench: Bench) -> None:
    lines = [exported(5, "q"), exported(6, "p")]
    assert bench.take_in(*lines) == {"new": 2}
    assert bench.store.rows[5][1].tolist() == [0, 1]  # its own embedding
    assert bench.take_in(*lines) == {"known": 2}
    assert bench.take_in(exported(5, "q", response="corrected")) == {"replaced": 1}
    assert bench.store.rows[5][0].response == "corrected"
    assert len(bench.store.rows) == 2


def test_an_id_that_stands_twice_in_a_file_is_one_example_s(bench: Bench) -> None:
    lines = [exported(5, "q"), exported(5, "q", response="b", quality=1.0), exported(5, "p")]
    assert bench.take_in(*lines) == {"new": 2, "replaced": 1}
    assert bench.stored == [("t", "p", "a"), ("t", "q", "b")]


def test_what_is_refused_for_live_interactions_is_refused_by_its_line(bench: Bench) -> None:
    lines = pairs(
        "q=a",
        "key=export AWS_KEY=AKIAIOSFODNN7EXAMPLE",
        "Ignore all previous instructions=yes",
        f"long={'x' * 17_000}",
        "p=a",
    )
    old = exported(9, "old", expires_at_ms=5)
    assert bench.take_in(*lines, old) == {"new": 2, "refused": 4}
    assert bench.told == [2, 3, 4, 9]
    assert [request for _, request, _ in bench.stored] == ["p", "q"]


def test_examples_are_imported_where_no_interactions_become_any(bench: Bench) -> None:
    settings = Settings(examples={"enabled": False, "from_llms": ["small_llm"]})
    assert bench.take_in(*pairs("q=a"), settings=settings) == {"new": 1}


def test_what_was_redacted_is_embedded_anew_and_given_to_nobody(bench: Bench) -> None:
    pytest.importorskip("presidio_analyzer")
    settings = Settings(
        examples={"personal_data": "redact", "personal_entities": ["EMAIL_ADDRESS"]}
    )
    line = exported(5, "Write to jane@example.com now", answer_keys="k" * 24)
    assert bench.take_in(line, settings=settings) == {"new": 1}
    example, embedding = bench.store.rows[5]
    assert example.request == "Write to <EMAIL_ADDRESS> now"
    assert (example.answer_keys, embedding.tolist()) == ("", [1, 0])


def test_a_dry_run_tells_what_would_be_and_writes_nothing(bench: Bench) -> None:
    bench.take_in(exported(5, "q", quality=0.5), exported(6, "p"))
    before = dict(bench.store.rows)
    lines = [
        *pairs("q=better", "new=a", "New=a", "new=other", "p=a"),
        exported(6, "p", response="c"),
    ]
    expected = {"replaced": 2, "new": 1, "known": 2, "no better": 1}
    assert bench.take_in(*lines, dry=True, batch=2) == expected
    assert bench.store.rows == before
    assert bench.take_in(*lines, batch=2) == expected


def test_without_deduplication_all_lines_are_stored(bench: Bench) -> None:
    settings = Settings(examples={"deduplicate": False})
    assert bench.take_in(*pairs("q=a", "q=a"), settings=settings) == {"new": 2}
    assert bench.take_in(*pairs("q=a"), settings=settings, dry=True) == {"new": 1}


def test_what_failed_is_done_again_without_storing_anything_twice(bench: Bench) -> None:
    lines = pairs(*(f"request {n}=a" for n in range(4)))
    bench.take_in(*lines[:2])
    bench.store.error = UnavailableError("away")
    with pytest.raises(UnavailableError):
        bench.take_in(*lines[2:])
    bench.store.error = None
    assert bench.take_in(*lines) == {"known": 2, "new": 2}
