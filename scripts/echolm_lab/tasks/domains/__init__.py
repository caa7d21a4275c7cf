"""The domains of the workload, one module each, all with the same protocol."""

from __future__ import annotations

from echolm_lab.tasks.domains.base import Domain
from echolm_lab.tasks.domains.shell import SHELL
from echolm_lab.tasks.domains.sql import SQL
from echolm_lab.tasks.domains.support import SUPPORT
from echolm_lab.tasks.domains.tools import TOOLS

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (SHELL, SQL, TOOLS, SUPPORT)}

__all__ = ["DOMAINS", "Domain"]
