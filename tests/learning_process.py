"""A process of its own that writes to a learning log or learns from it, for tests that kill it.

learning_process.py append LOG                appends for ever; prints what was acknowledged
learning_process.py learn LOG EVENTS EVERY    learns so many events; prints a digest
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import sys
import time
from typing import Any

import numpy as np
import redis
from echolm.bandit.features import DIMENSION
from echolm.bandit.learning import BanditLearning
from echolm.bandit.thompson import ThompsonSampling
from echolm.errors import UnavailableError
from echolm.learning.feedback import PREFERENCE, RATING, describe
from echolm.learning.learner import Learner
from echolm.primitives import Decision
from echolm.settings import Settings
from echolm.wiring.learning import open_event_log
from echolm.wiring.routing import build_bandit


def decision(number: int, llm: str = "small_llm") -> dict[str, Any]:
    """A decision whose context follows from the number."""
    x = np.random.default_rng(number).random(DIMENSION).astype(np.float32)
    return describe(Decision(f"{llm}-{number}", "public", llm, x, 0.5, 0.5, (1,)))


def feedback(number: int) -> tuple[str, dict[str, Any]]:
    """The n-th event: ratings, of which some replace others, and preferences."""
    rng = np.random.default_rng(number)
    about = int(rng.integers(number // 2 + 1))
    if number % 5 == 4:
        return PREFERENCE, {"better": decision(about), "worse": decision(about, "large_llm")}
    return RATING, {**decision(about), "score": float(rng.random())}


def put_damaged(log_url: str) -> None:
    """Three events: one damaged, one of a kind that nobody knows, and one of no use."""
    if log_url.startswith("redis"):
        with redis.Redis.from_url(log_url) as client:
            client.xadd("echolm:events", {"kind": "rating", "body": b"\xff{"})
    else:
        with sqlite3.connect(log_url) as db:
            db.execute("INSERT INTO events (kind, body, at_ms) VALUES ('rating', x'ff7b', 1)")
        db.close()
    log = open_event_log(Settings(event_log=log_url))
    log.append("from_the_future", {"n": 1})
    log.append("rating", {"score": 2})
    log.close()


def digest(bandit: ThompsonSampling) -> str:
    """Differs as soon as one bit of a posterior does."""
    found = hashlib.sha256()
    for name, arm in sorted(bandit.arms.items()):
        state = arm.state()
        found.update(f"{name} {state['evidence']}".encode())
        found.update(state["mean"].tobytes() + state["covariance"].tobytes())
    return found.hexdigest()


def append(log_url: str) -> None:
    log = open_event_log(Settings(event_log=log_url))
    for number in itertools.count():
        try:
            log.append("number", {"n": number})
        except UnavailableError:
            return
        print(number, flush=True)


def learn(log_url: str, events: int, snapshot_every: int) -> None:
    featurizer, bandit = build_bandit(Settings())
    log = open_event_log(Settings(event_log=log_url))
    learner = Learner(log, [BanditLearning(bandit, featurizer)], snapshot_every)
    while learner.events < events:
        try:
            read = learner.catch_up(batch=7)
        except UnavailableError:  # more was removed while it learnt anew
            continue
        print(f"{learner.events - read} + {read}", flush=True)
        time.sleep(0.005)
    print(f"{learner.applied} {learner.skipped} {learner.ignored} {digest(bandit)}", flush=True)


if __name__ == "__main__":
    command, log_url, *numbers = sys.argv[1:]
    {"append": append, "learn": learn}[command](log_url, *map(int, numbers))
