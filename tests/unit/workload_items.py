"""Requests for tests that do not care what they ask."""

from __future__ import annotations

from echolm_lab.tasks import WorkItem


def items(count: int) -> list[WorkItem]:
    """``count`` requests, told apart by their text; each has its own right answer."""
    return [
        WorkItem(
            text=f"request {n}",
            answer=f"answer {n}",
            intent_id=n,
            domain="shell",
            kind="known",
            house=(),
            slot_values=(str(n),),
        )
        for n in range(count)
    ]
