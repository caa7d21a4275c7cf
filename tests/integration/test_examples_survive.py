"""``kill -9`` at any moment: admitted interactions are stored, once, and the statistics agrees."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from echolm.examples.deduplication import plain
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import START
from echolm.serving.milvus_lite import MilvusLite
from echolm.store.base import Example
from echolm.store.milvus import MilvusStore
from echolm.wiring.learning import open_event_log
from writing_process import DIMENSION, LIMIT, interaction, retrieval, settings

pytestmark = pytest.mark.timeout(240)

PROCESS = Path(__file__).parents[1] / "writing_process.py"
KILLS = 20


def stored(uri: str) -> list[Example]:
    store = MilvusStore(retrieval(uri), "fake", DIMENSION)
    try:
        return [example for batch in store.scan() for example, _ in batch]
    finally:
        store.close()


def run_and_kill(data_dir: Path, uri: str, first: int, seconds: float) -> list[int]:
    """Numbers of the interactions that were acknowledged before the kill."""
    command = [sys.executable, str(PROCESS), str(data_dir), uri, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # it has begun
        time.sleep(seconds)
        process.kill()
        lines += process.stdout.readlines()
    return [int(line) for line in lines if line.endswith("\n")]


def test_a_killed_writer_loses_nothing_and_stores_nothing_twice(
    tmp_path: Path, own_milvus_lite: MilvusLite
) -> None:
    data_dir, dice = tmp_path / "data", random.Random(0)
    acknowledged: list[int] = []
    for kill in itertools.count():
        # A slow machine needs more of them until there was something to evict.
        if kill >= KILLS and len(acknowledged) > 2 * LIMIT:
            break
        if kill % 5 == 4:
            own_milvus_lite.kill()
            own_milvus_lite.start()
        first = acknowledged[-1] + 1 if acknowledged else 0
        acknowledged += run_and_kill(data_dir, own_milvus_lite.uri, first, dice.uniform(0.05, 0.6))
    subprocess.run([sys.executable, str(PROCESS), str(data_dir), own_milvus_lite.uri], check=True)

    found = stored(own_milvus_lite.uri)
    log = open_event_log(settings(data_dir))
    events = [e.body for e in log.read(START, 1_000_000) if e.kind == "examples"]
    statistics = StatisticsTable(settings(data_dir).statistics_path, {})
    statistics.follow(log)
    log.close()
    # Every request that was acknowledged has an example, or had one that made room.
    ever = {one["id"] for body in events for one in body["stored"]}
    gone = {id for body in events for id in body["removed"]}
    left: set[int] = set()
    for body in events:
        left = (left | {one["id"] for one in body["stored"]}) - set(body["removed"])
    assert {example.id for example in found} == left
    requests = {interaction(number).request for number in acknowledged}
    assert len(requests) - len(gone) <= len(found) <= LIMIT
    assert len(requests) <= len(ever)
    # None has two.
    assert len({plain(example.request) for example in found}) == len(found)
    # And the statistics agree.
    assert statistics.totals() == (len(found), sum(example.num_bytes for example in found))
    assert statistics.known([example.id for example in found]) == {e.id for e in found}
    # It was killed while replacing and evicting. If that was between the store and the log, the
    # next process finds the example gone and no longer knows why.
    reasons = statistics.removals().keys()
    assert {"replaced", "evicted"} <= reasons <= {"replaced", "evicted", "not_in_store"}
    statistics.close()
