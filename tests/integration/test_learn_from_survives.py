"""``kill -9`` while it learns from a log: nothing is stored, learnt or, once kept, paid twice.

``TEST_LEARN_FROM_KILLS=40`` kills more often than the suite does.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from echolm.learning.event_log import START
from echolm.past_traffic.log import fingerprint
from echolm.past_traffic.state import ANSWERED
from echolm.serving.milvus_lite import MilvusLite
from echolm.store.milvus import MilvusStore
from echolm.wiring.learning import open_event_log
from echolm.wiring.past_traffic import open_past_traffic_state
from past_traffic_process import BATCH, opened, settings
from writing_process import DIMENSION, retrieval

PROCESS = Path(__file__).parents[1] / "past_traffic_process.py"
KILLS = int(os.environ.get("TEST_LEARN_FROM_KILLS", "8"))
REQUESTS = 2 * BATCH * KILLS

pytestmark = pytest.mark.timeout(60 + 30 * KILLS)


def lines_until_killed(command: list[str], dice: random.Random, word: str) -> list[str]:
    """What it printed, killed soon after some lines that begin with a word."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines, until = [], dice.randrange(1, 12 if word == "asked" else 4)
        while until and (line := process.stdout.readline()):
            lines.append(line)
            until -= line.startswith(word)
        time.sleep(dice.uniform(0.0, 0.03))
        process.kill()
        lines += process.stdout.readlines()
    return [line.strip() for line in lines if line.endswith("\n")]


def said(lines: list[str], word: str) -> list[str]:
    return [line.split()[1] for line in lines if line.startswith(word)]


def test_a_killed_run_goes_on_where_it_ended(tmp_path: Path, own_milvus_lite: MilvusLite) -> None:
    data_dir, dice = tmp_path / "data", random.Random(0)
    path = tmp_path / "log.jsonl"
    records = [{"request": f"request {n}", "response": f"answer {n}"} for n in range(REQUESTS)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    chosen, known = settings(data_dir), fingerprint([path])
    _, sample = opened(path, chosen)
    command = [sys.executable, str(PROCESS), str(data_dir), own_milvus_lite.uri, str(path)]

    answered: set[str] = set()
    judged: set[str] = set()
    asked: Counter[str] = Counter()
    cut_short = 0
    for kill in range(KILLS + 1):
        if kill < KILLS:
            word = "stored" if kill < KILLS // 2 else "asked"
            lines = lines_until_killed(command, dice, word)
        else:
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            lines = ended.stdout.splitlines()
        # What was kept is not asked or judged again.
        assert not answered & set(said(lines, "asked"))
        assert not judged & set(said(lines, "judged"))
        asked.update(said(lines, "asked"))
        cut_short += "end" not in lines
        state = open_past_traffic_state(chosen)
        for pair in state.spent(known):
            if "read" in pair.body:
                answered.add(pair.key.request_id)
                if pair.stage != ANSWERED:
                    judged.add(pair.key.request_id)
        state.close()
    assert cut_short == KILLS, "it came to its end before it was killed: give it more"
    assert answered == judged and len({id.split("-")[1] for id in answered}) == len(sample)
    assert f"spent {20 * len(answered)}" in lines
    # Only what was under way at a kill, four answers at a time, was asked for in vain.
    assert answered <= set(asked) and sum(asked.values()) <= len(answered) + 4 * KILLS

    store = MilvusStore(retrieval(own_milvus_lite.uri), "fake", DIMENSION)
    stored = Counter(e.request for batch in store.scan(embeddings=False) for e, _ in batch)
    store.close()
    assert stored == Counter(f"request {n}" for n in range(REQUESTS))
    state = open_past_traffic_state(chosen)
    assert state.stored(known) == (REQUESTS, {"stored": REQUESTS})
    state.close()
    log = open_event_log(chosen)
    events = log.read(START, 100_000)
    log.close()
    ratings = [event.body for event in events if event.kind == "rating"]
    assert {body["request_id"] for body in ratings} == answered
    # What a crash has put into the log twice is the same, and counts once.
    assert len({(body["request_id"], body["score"]) for body in ratings}) == len(answered)
