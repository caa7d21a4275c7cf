from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm.conversation import Turn, transcript
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.examples.consistency import reconcile
from echolm.examples.events import CHANGE, REPLACEMENT, USAGE, change, replacement, usage
from echolm.examples.off_peak import OffPeakReplay
from echolm.examples.replay import Replayed, Replayer
from echolm.examples.statistics import StatisticsTable
from echolm.primitives import Completion, OnPiece, Sampling
from echolm.settings import ReplaySettings, Settings
from echolm.store.base import REPLAYED, Example, scope_key
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.judge import FakeJudge
from echolm.testing.llm import FakeLLM
from echolm.testing.store import InMemoryStore
from echolm.wiring.llms import build_endpoints

GAIN = 0.05


class Answers(FakeLLM):
    """Gives one answer after the other, to whatever it is asked."""

    def __init__(self, *answers: str, finish_reason: str = "stop", delay_s: float = 0.0) -> None:
        super().__init__(delay_s=delay_s, finish_reason=finish_reason)
        self.answers = answers
        self.sampled: list[Sampling] = []

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        if self.error is not None:
            raise self.error
        self.sampled.append(sampling)
        self.prompts.append(prompt)
        text = self.answers[(len(self.sampled) - 1) % len(self.answers)]
        await asyncio.sleep(self.delay_s)
        return Completion(text, self.finish_reason, 10, 5)


class World:
    """A store whose examples all have something to gain."""

    def __init__(self, directory: Path) -> None:
        self.store = InMemoryStore(2)
        self.log = MemoryEventLog()
        self.statistics = StatisticsTable(directory / "statistics.sqlite", {"small_llm": 0.1})
        self.llm = Answers("better")
        self.judge = FakeJudge({"stored": 0.4, "better": 0.9, "worse": 0.1, "as good": 0.4})

    def add(self, *ids: int, gain: float = GAIN, **changes: Any) -> None:
        values: dict[str, Any] = {
            "response": "stored",
            "tenant": "t",
            "scope": scope_key("t", ""),
            "source_llm": "large_llm",
            "quality": 0.9,
            "created_at_ms": 1,
            "updated_at_ms": 1,
        }
        examples = [Example(id=i, **({"request": f"request {i}"} | values | changes)) for i in ids]
        self.store.upsert(examples, np.ones((len(examples), 2), np.float32))
        self.log.append(CHANGE, change(examples))
        self.log.append(USAGE, usage({i: (50, 1.0, gain + i * 1e-4) for i in ids}))

    def replayer(self, **settings: Any) -> Replayer:
        chosen = Settings(replay=settings)
        clients = {llm.name: self.llm for llm in chosen.llms}
        endpoints = build_endpoints(chosen, clients)
        return Replayer(self.store, self.statistics, self.log, endpoints, self.judge, chosen)

    async def replay(self, limit: int = 100, **settings: Any) -> list[Replayed]:
        return [one async for one in self.replayer(**settings).run(limit)]

    def responses(self) -> dict[str, str]:
        return {e.request: e.response for e, _ in self.store.rows.values()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.statistics.close()


async def test_a_better_answer_takes_the_stored_ones_place(world: World) -> None:
    world.add(1)
    [one] = await world.replay(candidates=3)
    assert (one.id, one.improved, one.candidates, one.tokens) == (1, True, 3, 3 * 15 + 2 * 5)
    [(example, embedding)] = world.store.rows.values()
    assert (example.request, example.response, example.tenant) == ("request 1", "better", "t")
    assert example.answer_keys == REPLAYED, "nobody asked for an answer that is sampled so"
    assert example.id != 1 and example.updated_at_ms > 1 == example.created_at_ms
    assert embedding.tolist() == [1, 1]
    world.statistics.follow(world.log)
    row = world.statistics.get(example.id)
    assert row is not None
    assert (row.uses, row.replays) == (50, 1)
    assert row.gain == pytest.approx(0.0, abs=1e-6)
    assert world.statistics.removals() == {"replayed": 1}
    assert {s.temperature for s in world.llm.sampled} == {0.8}


@pytest.mark.parametrize("answer", ["worse", "as good", "undecided", "stored"])
async def test_an_answer_that_is_not_clearly_better_does_not(world: World, answer: str) -> None:
    world.add(1)
    world.llm = Answers(answer)
    [one] = await world.replay()
    assert not one.improved and one.reason
    assert world.responses() == {"request 1": "stored"}
    world.statistics.follow(world.log)
    row = world.statistics.get(1)
    assert row is not None and row.replays == 1
    assert row.gain == pytest.approx(0.0, abs=1e-6)


async def test_a_conversation_is_answered_again_with_what_came_before(world: World) -> None:
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
    world.add(1, request=transcript(turns))
    await world.replay(candidates=1)
    assert world.llm.prompts == ["<|user|>a<|assistant|>b<|end|><|user|>c<|assistant|>"]
    asked = {request for request, _, _ in world.judge.asked}
    assert asked == {"user: a\n\nassistant: b\n\nuser: c"}


async def test_the_best_of_several_is_taken(world: World) -> None:
    world.add(1)
    world.llm = Answers("worse", "better", "fine")
    world.judge.scores["fine"] = 0.7
    await world.replay(candidates=3)
    assert world.responses() == {"request 1": "better"}


async def test_cut_and_empty_answers_are_no_candidates(world: World) -> None:
    world.add(1)
    world.llm = Answers("better", finish_reason="length")
    assert not (await world.replay())[0].improved
    world.add(2)
    world.llm = Answers(" ")
    assert not (await world.replay())[0].improved


async def test_those_with_most_to_gain_come_first_and_the_rest_is_left(world: World) -> None:
    world.add(1, 2, 3)
    world.add(4, gain=0.001)
    assert [one.id for one in await world.replay()] == [3, 2, 1]
    assert world.responses()["request 4"] == "stored"


async def test_an_interrupted_replay_goes_on_where_it_ended(world: World) -> None:
    world.add(1, 2, 3)
    assert [one.id for one in await world.replay(1)] == [3]
    assert [one.id for one in await world.replay()] == [2, 1]


async def test_an_example_is_replayed_so_often_and_no_more(world: World) -> None:
    world.add(1)
    world.llm = Answers("worse")
    for _ in range(3):
        await world.replay(max_replays=2)
        world.log.append(USAGE, usage({1: (50, 1.0, GAIN)}))  # it is used poorly again
    assert len(world.llm.sampled) == 2 * 4


async def test_it_ends_where_nothing_improves_any_more(world: World) -> None:
    world.add(*range(1, 31))
    world.llm = Answers("worse")
    assert len(await world.replay(patience=5)) == 5


async def test_nothing_is_generated_for_what_the_judge_finds_good(world: World) -> None:
    world.add(1)
    world.judge.scores["stored"] = 0.97
    [one] = await world.replay()
    assert (one.reason, one.candidates, world.llm.sampled) == ("good already", 0, [])


@pytest.mark.parametrize(("answer", "agreed"), [("stored", None), ("much the same", 0.97)])
async def test_one_answer_that_agrees_with_the_stored_one_is_enough(
    world: World, answer: str, agreed: float | None
) -> None:
    world.add(1)
    world.judge = FakeJudge({"stored": agreed} if agreed else {}, scale="agreement")
    world.llm = Answers(answer, "another")
    [one] = await world.replay()
    assert (one.reason, one.candidates) == ("good already", 1)
    assert world.responses() == {"request 1": "stored"}


async def test_a_judge_that_compares_needs_a_clear_win(world: World) -> None:
    world.add(1)
    world.judge = FakeJudge({"better": 0.5}, scale="preference")
    assert not (await world.replay())[0].improved
    world.add(2)
    world.judge = FakeJudge({"better": 1.0}, scale="preference")
    assert (await world.replay())[0].improved


async def test_where_only_agreement_is_known_the_majority_wins(world: World) -> None:
    class Agreement(FakeJudge):
        async def judge(self, request: str, answer: str, reference: str | None) -> Any:
            self.scores = {answer: float(answer[0] == (reference or " ")[0])}
            return await super().judge(request, answer, reference)

    world.add(1)
    world.judge = Agreement(scale="agreement")
    world.llm = Answers("right", "r", "rather", "wrong")
    await world.replay()
    assert world.responses()["request 1"] in ("right", "r", "rather")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source_llm": "gone"}, "unknown LLM"),
        ({"scope": scope_key("t", "be brief")}, "system prompt"),
    ],
)
async def test_what_cannot_be_replayed_is_passed_over_for_good(
    world: World, changes: dict[str, Any], reason: str
) -> None:
    world.add(1, **changes)
    assert [one.reason for one in await world.replay()] == [reason]
    assert await world.replay() == []


async def test_what_the_llm_refuses_is_passed_over_for_good(world: World) -> None:
    world.add(1)
    world.llm.error = InvalidRequestError("messages: no tools here")
    assert [one.reason for one in await world.replay()] == ["refused"]
    world.llm.error = None
    assert await world.replay() == []


async def test_an_outage_of_the_llm_costs_an_example_nothing(world: World) -> None:
    world.add(1)
    world.llm.error = UnavailableError("down")
    assert [one.reason for one in await world.replay()] == ["LLM or judge failed"]
    world.llm.error = None
    assert [one.improved for one in await world.replay()] == [True]


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def killed_before(world: World, step: int) -> Iterator[None]:
    """The process ends before its ``step``-th change of store or log; what follows is another."""
    changes = 0
    watched = ((world.store, "upsert"), (world.store, "delete"), (world.log, "append"))

    def watch(owner: Any, name: str) -> None:
        change = getattr(owner, name)

        def changed(*arguments: Any) -> Any:
            nonlocal changes
            if changes == step:
                raise Killed
            changes += 1
            return change(*arguments)

        setattr(owner, name, changed)

    for owner, name in watched:
        watch(owner, name)
    yield
    for owner, name in watched:
        delattr(owner, name)


@pytest.mark.parametrize("with_reconcile", [False, True])
@pytest.mark.parametrize("step", range(6))
async def test_at_whatever_step_it_ends_one_whole_example_and_its_statistics_are_left(
    world: World, tmp_path: Path, step: int, with_reconcile: bool
) -> None:
    world.add(1)
    store, log = world.store, world.log
    with killed_before(world, step):
        if step < 5:
            with pytest.raises(Killed):
                await world.replay()
        else:
            assert [one.improved for one in await world.replay()] == [True]

    if with_reconcile:  # another replica looks first
        other = StatisticsTable(tmp_path / "other.sqlite", {"small_llm": 0.1})
        reconcile(store, other, log)
        other.close()
        assert len(store.rows) == 1
    replayed = [one.improved for one in await world.replay()]
    assert replayed == ([True] if step <= 1 else [])
    [(example, _)] = store.rows.values()
    assert example.response == "better"
    world.statistics.follow(log)
    row = world.statistics.get(example.id)
    assert row is not None
    assert (row.uses, row.replays) == (50, 1)
    assert world.statistics.totals() == (1, example.num_bytes)
    assert world.statistics.removals() == {"replayed": 1}
    assert world.statistics.replacements() == []


async def test_what_was_deleted_before_an_interrupted_replay_is_finished_stays_deleted(
    world: World,
) -> None:
    world.add(1)
    # The better answer is in the store, no more.
    with killed_before(world, 2), pytest.raises(Killed):
        await world.replay()
    world.store.delete([1])
    world.log.append(CHANGE, change(removed=[1], reason="deleted"))
    assert await world.replay() == []
    assert world.store.count() == 0
    assert world.statistics.totals() == (0, 0)
    assert world.statistics.replacements() == []


async def test_of_two_that_replay_an_example_one_replaces_it(world: World) -> None:
    world.add(1)
    generate = world.llm.generate

    async def meanwhile(*arguments: Any) -> Completion:
        if not world.statistics.replacements():
            world.log.append(REPLACEMENT, replacement(1, 99))
        return await generate(*arguments)

    world.llm.generate = meanwhile  # type: ignore[method-assign]
    assert [one.reason for one in await world.replay()] == ["replaced elsewhere"]
    assert list(world.store.rows) == [1]
    world.statistics.follow(world.log)
    assert [(one.old, one.new) for one in world.statistics.replacements()] == [(1, 99)]


async def test_an_example_that_was_removed_meanwhile_does_not_come_back(world: World) -> None:
    world.add(1)
    generate = world.llm.generate

    async def meanwhile(*arguments: Any) -> Completion:
        world.store.delete([1])
        world.log.append(CHANGE, change(removed=[1], reason="evicted"))
        return await generate(*arguments)

    world.llm.generate = meanwhile  # type: ignore[method-assign]
    assert [one.improved for one in await world.replay()] == [False]
    assert world.store.count() == 0
    world.statistics.follow(world.log)
    assert world.statistics.totals() == (0, 0)
    assert world.statistics.replacements() == []


class Peak:
    """An off-peak replay whose load is set by the test."""

    def __init__(self, world: World, name: str = "a") -> None:
        self.load = 0
        self.done: list[Replayed] = []
        settings = ReplaySettings(off_peak=True, pause_s=0.1)
        self.task = asyncio.create_task(
            OffPeakReplay(
                world.replayer(), world.log, settings, lambda: self.load, name, self.done.append
            ).run()
        )

    async def until(self, number: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.done) < number and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert len(self.done) == number

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        assert self.task.cancelled()


async def test_a_server_without_load_replays(world: World) -> None:
    world.add(1, 2)
    peak = Peak(world)
    await peak.until(2)
    await peak.stop()
    assert set(world.responses().values()) == {"better"}


async def test_it_stops_at_once_when_load_comes_and_goes_on_afterwards(world: World) -> None:
    world.add(1)
    world.llm = Answers("better", delay_s=0.4)
    peak = Peak(world)
    while not world.llm.sampled:
        await asyncio.sleep(0.02)
    peak.load = 1
    await asyncio.sleep(0.8)
    assert peak.done == []
    assert world.responses() == {"request 1": "stored"}
    peak.load = 0
    await peak.until(1)
    await peak.stop()
    assert world.responses() == {"request 1": "better"}


async def test_one_replica_at_a_time_replays(world: World) -> None:
    world.add(1)
    assert world.log.lease("replay", "another", 60.0)
    peak = Peak(world)
    await asyncio.sleep(0.5)
    await peak.stop()
    assert peak.done == [] and world.llm.sampled == []
