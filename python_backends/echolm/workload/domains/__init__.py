"""The domains of the workload, one module each, all with the same protocol."""

from __future__ import annotations

from echolm.workload.domains.base import Domain
from echolm.workload.domains.shell import SHELL
from echolm.workload.domains.sql import SQL
from echolm.workload.domains.support import SUPPORT
from echolm.workload.domains.tools import TOOLS

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (SHELL, SQL, TOOLS, SUPPORT)}

__all__ = ["DOMAINS", "Domain"]
