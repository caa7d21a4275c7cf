"""A learning log of which the true quality of each LLM is known, and which misleads a naive reader.

The router draws both LLMs alike; the small LLM is right in 60% of its answers and the large one in
90%. Wrong answers of the small LLM are often asked for since they are valuable, few answers are
asked for at random, and bad ratings come unasked.
"""

from __future__ import annotations

import numpy as np
from echolm.bandit.features import DIMENSION
from echolm.learning.event_log import EventLog
from echolm.learning.feedback import RATING, describe
from echolm.primitives import Decision

TRUTH = {"small_llm": 0.6, "large_llm": 0.9}


def fill(log: EventLog, decisions: int) -> None:
    rng = np.random.default_rng(1)
    for n in range(decisions):
        x = np.zeros(DIMENSION, dtype=np.float32)
        x[[0, 2]] = 1, rng.normal()
        llm = ("small_llm", "large_llm")[rng.integers(2)]
        score = float(rng.random() < TRUTH[llm])
        valuable = llm == "small_llm" and not score and rng.random() < 0.3
        reason = "value" if valuable else "random" if rng.random() < 0.1 else ""
        if not reason and (score or rng.random() < 0.8):
            continue
        probability = 1.0 if valuable else 0.1
        decision = Decision(
            str(n), "t", llm, x, 0.5, 0.5, (), solicited=reason, solicit_probability=probability
        )
        log.append(RATING, {**describe(decision), "score": score})
