"""A model process that follows the learning log."""

from __future__ import annotations

import asyncio
import logging

from echolm.errors import UnavailableError
from echolm.learning.learner import Learner
from echolm.triton.metrics import Metrics

logger = logging.getLogger("echolm")

_LEARN_EVERY_S = 0.2


def learn_at_start(learner: Learner) -> None:
    """Learn all that is in the log. If it is out of reach, the model starts untaught."""
    try:
        learner.catch_up()
    except UnavailableError as error:
        logger.warning("started without what was learnt: %s", error)


async def keep_learning(learner: Learner, metrics: Metrics, model: str) -> None:
    """Learn what is new, again and again, and count the events by what became of them.

    Args:
        model: name of the Triton model, for the metric.
    """
    loop = asyncio.get_running_loop()
    while True:
        for result in ("applied", "skipped", "ignored"):
            count = getattr(learner, result)
            metrics.total("echolm_learning_events_total", count, result=result, model=model)
        await asyncio.sleep(_LEARN_EVERY_S)
        up = True
        try:
            await loop.run_in_executor(None, learner.catch_up)
        except Exception as error:  # the next round may work
            up = False
            logger.warning("learning pauses: %s", error)
        metrics.level("echolm_learning_log_up", float(up), model=model)
