"""Seeded workload with exact grading: shell, SQL, tool calls, support replies.

>>> from echolm.workload import Workload, grade
>>> workload = Workload(seed=0)
>>> item = workload.stream(1, seed=1, phase="live")[0]
>>> grade(item, item.answer)
1.0
"""

from __future__ import annotations

from echolm.workload.catalogue import CatalogueSize
from echolm.workload.grader import grade
from echolm.workload.types import Intent, WorkItem
from echolm.workload.workload import Mix, Workload

__all__ = ["CatalogueSize", "Intent", "Mix", "WorkItem", "Workload", "grade"]
