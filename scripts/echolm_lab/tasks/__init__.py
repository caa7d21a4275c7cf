"""Seeded workload with exact grading: shell, SQL, tool calls, support replies.

>>> from echolm_lab.tasks import Workload, grade
>>> workload = Workload(seed=0)
>>> item = workload.stream(1, seed=1, phase="live")[0]
>>> grade(item, item.answer)
1.0
"""

from __future__ import annotations

from echolm_lab.tasks.catalogue import CatalogueSize
from echolm_lab.tasks.grader import grade
from echolm_lab.tasks.types import Intent, Item, PastInteraction, WorkItem
from echolm_lab.tasks.workload import Mix, Workload

__all__ = [
    "CatalogueSize",
    "Intent",
    "Item",
    "Mix",
    "PastInteraction",
    "WorkItem",
    "Workload",
    "grade",
]
