"""The judge ``grader``: a function of the operator's own."""

from __future__ import annotations

import asyncio
import importlib
import math
import time
from collections.abc import Callable

from echolm.errors import ConfigurationError
from echolm.judges.base import Judgement, Scale

Grader = Callable[[str, str, str | None], float]
"""(request, answer, reference) -> quality in [0, 1]; called in a thread."""


class GraderJudge:
    """Asks a function: a test suite, a checker, a reward model, the workload's exact grader."""

    kind = "grader"
    scale: Scale = "absolute"

    def __init__(self, grader: Grader) -> None:
        self._grader = grader

    async def judge(self, request: str, answer: str, reference: str | None) -> Judgement:
        started = time.perf_counter()
        score = float(await asyncio.to_thread(self._grader, request, answer, reference))
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise ValueError(f"judging.grader: expected a number in [0, 1], got {score}")
        return Judgement(score, seconds=time.perf_counter() - started)


def load_grader(name: str) -> Grader:
    """The function ``module:function``.

    Raises:
        ConfigurationError: there is none of that name.
    """
    module, _, function = name.partition(":")
    try:
        grader = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigurationError(
            f"judging.grader: expected module:function that can be imported, got {name!r}: {error}"
        ) from error
    if not callable(grader):
        raise ConfigurationError(
            f"judging.grader: expected a function, got {name!r}, a {type(grader).__name__}"
        )
    found: Grader = grader
    return found
