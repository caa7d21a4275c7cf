"""A model process that follows the learning log."""

from __future__ import annotations

import logging

from echolm.errors import EchoError
from echolm.learning.learner import Learner
from echolm.triton.metrics import Metrics
from echolm.triton.runtime import Runtime

logger = logging.getLogger("echolm")

_LEARN_EVERY_S = 0.2


def follow_log(learner: Learner, runtime: Runtime, metrics: Metrics, model: str) -> None:
    """Learn all that is in the log, and from then on what is new; count what became of the events.

    If the log is out of reach, or damaged in a way that nobody foresaw, the model starts untaught.
    """

    def learn() -> None:
        up = False
        try:
            learner.catch_up()
            up = True
        finally:
            metrics.level("echolm_learning_log_up", float(up), model=model)
            for result in ("applied", "skipped", "ignored"):
                count = getattr(learner, result)
                metrics.total("echolm_learning_events_total", count, result=result, model=model)

    try:
        learn()
    except Exception as error:  # whatever the log holds, the model answers
        defect = not isinstance(error, EchoError)
        logger.warning("started without what was learnt: %s", error, exc_info=defect)
    runtime.repeat(learn, _LEARN_EVERY_S, "learning pauses")
