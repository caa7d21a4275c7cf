"""The workload's exact grader as a judge.

``judging.grader = "scripts/echolm_lab/tasks/judging.py:grade"``.
"""

from __future__ import annotations

import functools

from echolm_lab.tasks import grader
from echolm_lab.tasks.workload import Workload


def grade(request: str, answer: str, reference: str | None) -> float:
    """Score of the answer to a request of the demo workload (seed 0).

    Raises:
        ValueError: the request is none of the workload's.
    """
    item = _workload().recognise(request)
    if item is None:
        raise ValueError("expected a request of the demo workload, got another")
    return grader.grade(item, answer)


@functools.cache
def _workload() -> Workload:
    return Workload(seed=0)
