"""``kill -9`` in the middle of replay: every example has one whole answer, and its statistics.

``TEST_REPLAY_KILLS=20`` kills more often than the suite does.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from echolm.cli.main import main
from echolm.embedding import EmbedderSpec
from echolm.examples.consistency import reconcile
from echolm.examples.events import CHANGE, USAGE, change, usage
from echolm.examples.statistics import ExampleStatistics, StatisticsTable
from echolm.learning.event_log import EventLog
from echolm.serving.milvus_lite import MilvusLite
from echolm.store.base import Stored
from echolm.store.milvus import MilvusStore
from echolm.wiring.learning import open_event_log
from replaying_process import (
    answer,
    embedding,
    example,
    is_improvable,
    number_of,
    rate,
    settings,
    uses,
)
from writing_process import DIMENSION, retrieval

PROCESS = Path(__file__).parents[1] / "replaying_process.py"
KILLS = int(os.environ.get("TEST_REPLAY_KILLS", "6"))
EXAMPLES = 15 * KILLS
MILVUS_DIES_EVERY = 5

pytestmark = pytest.mark.timeout(60 + 30 * KILLS)


class World:
    """What the replaying process works on, as the test sees it between two processes."""

    def __init__(self, data_dir: Path, milvus: MilvusLite) -> None:
        self.data_dir = data_dir
        self.milvus = milvus

    @contextmanager
    def opened(self) -> Iterator[tuple[MilvusStore, EventLog, StatisticsTable]]:
        chosen = settings(self.data_dir)
        store = MilvusStore(retrieval(self.milvus.uri), "fake", DIMENSION)
        log = open_event_log(chosen)
        statistics = StatisticsTable(chosen.statistics_path, chosen.relative_costs)
        try:
            yield store, log, statistics
        finally:
            statistics.close()
            log.close()
            store.close()

    def fill(self) -> None:
        numbers = range(EXAMPLES)
        with self.opened() as (store, log, _):
            examples = [example(n) for n in numbers]
            store.upsert(examples, np.stack([embedding(n) for n in numbers]))
            log.append(CHANGE, change(examples))
            gains = {n + 1: (uses(n), 1.0, 0.05 + n * 1e-4) for n in numbers}
            log.append(USAGE, usage(gains))
            for n in numbers:
                rate(log, n)

    def stored(self) -> dict[int, list[Stored]]:
        """What is in the store of each request; every answer is whole, every embedding right."""
        found: dict[int, list[Stored]] = defaultdict(list)
        with self.opened() as (store, _, _):
            for batch in store.scan():
                for one, vector in batch:
                    number = number_of(one.request)
                    assert one.response in (answer(number, False), answer(number, True))
                    np.testing.assert_allclose(vector, embedding(number), atol=1e-6)
                    found[number].append((one, vector))
        assert set(found) == set(range(EXAMPLES))
        return found

    def restart(self) -> dict[int, ExampleStatistics]:
        """The statistics of each request after what a server does when it starts."""
        with self.opened() as (store, log, statistics):
            reconcile(store, statistics, log)
            rows = {row.id: row for row in statistics.ranked("age", 10 * EXAMPLES)}
            assert statistics.replacements() == []
        examples = self.stored()
        assert Counter(map(len, examples.values())) == {1: EXAMPLES}
        assert {one.id for stored in examples.values() for one, _ in stored} == set(rows)
        by_number = {number: rows[stored[0][0].id] for number, stored in examples.items()}
        for number, row in by_number.items():
            improved = examples[number][0][0].response == answer(number, True)
            assert row.uses == uses(number) and row.ratings == 1
            assert row.num_bytes == examples[number][0][0].num_bytes
            assert row.replays == 1 if improved else row.replays <= 1
        return by_number

    def replay(self, mode: str, dice: random.Random, kill_milvus: bool) -> list[str]:
        """Lines of a process that was killed while it replayed."""
        command = [sys.executable, str(PROCESS), str(self.data_dir), self.milvus.uri, mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            until = dice.randrange(3)
            while until and (line := process.stdout.readline()):
                lines.append(line)
                until -= line.startswith("sampled")
            time.sleep(dice.uniform(0.0, 0.25))
            if kill_milvus:
                self.milvus.kill()
                time.sleep(0.1)
            process.kill()
            lines += process.stdout.readlines()
        if kill_milvus:
            self.milvus.start()
        return [line.strip() for line in lines if line.endswith("\n")]

    def finish(self) -> list[str]:
        """Lines of a process that came to its end."""
        command = [sys.executable, str(PROCESS), str(self.data_dir), self.milvus.uri, "command"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return ended.stdout.splitlines()

    def check(self, tmp_path: Path) -> int:
        """Exit status of ``echolm examples check``."""
        folder = tmp_path / "embedder"
        folder.mkdir()
        (folder / "embedder.json").write_text(
            json.dumps(asdict(EmbedderSpec("fake", DIMENSION, 16)))
        )
        config = tmp_path / "echolm.toml"
        config.write_text(
            f'data_dir = "{self.data_dir}"\n[embedding]\nmodel_dir = "{folder}"\n[retrieval]\n'
            f'milvus_uri = "{self.milvus.uri}"\nindex_type = "FLAT"\n'
            "index_params = {}\nsearch_params = {}\n"
        )
        return main(["examples", "--config", str(config), "check"])


def numbers(lines: list[str], word: str) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(word)]


def test_a_killed_replay_loses_nothing_and_goes_on_where_it_ended(
    tmp_path: Path, own_milvus_lite: MilvusLite
) -> None:
    world, dice = World(tmp_path / "data", own_milvus_lite), random.Random(0)
    world.fill()
    done: list[int] = []
    cut_short = 0
    for kill in range(KILLS):
        mode = ("command", "off_peak")[kill % 2]
        lines = world.replay(mode, dice, kill % MILVUS_DIES_EVERY == MILVUS_DIES_EVERY - 1)
        # What had come to its end is not done again.
        assert not set(numbers(lines, "sampled")) & set(done)
        done += numbers(lines, "done")
        cut_short += bool(set(numbers(lines, "sampled")) - set(done))
        copies = Counter(map(len, world.stored().values()))
        # Of the one that it was just replacing there may be both.
        assert copies in ({1: EXAMPLES}, {1: EXAMPLES - 1, 2: 1})
        if kill % 3:  # else the next replay has to clear up by itself
            rows = world.restart()
            assert all(rows[number].replays == 1 for number in done)
    assert len(done) < EXAMPLES, "it was never killed while it had work: give it more"
    assert cut_short > KILLS // 3

    lines = world.finish()
    assert not set(numbers(lines, "sampled")) & set(done)
    done += numbers(lines, "done")
    assert max(Counter(done).values()) == 1
    rows = world.restart()
    assert all(row.replays == 1 for row in rows.values())
    for number, [(one, _)] in world.stored().items():
        assert one.response == answer(number, is_improvable(number))
    with world.opened() as (_, log, statistics):
        statistics.follow(log)
        assert statistics.removals() == {"replayed": sum(map(is_improvable, range(EXAMPLES)))}
    assert world.check(tmp_path) == 0
