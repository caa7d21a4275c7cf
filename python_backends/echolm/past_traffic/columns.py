"""CSV with columns of any names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from echolm.past_traffic.chat import check_finish, read_answer, read_request
from echolm.past_traffic.record import Logged, Skipped

FIELDS = ("request", "response", "system_prompt", "model", "finish_reason")
"""What a column may hold; the first two must be there."""


@dataclass(frozen=True)
class Columns:
    """Texts of requests and responses, or JSON of them, in columns.

    Attributes:
        names: the column of each of ``FIELDS`` that is not called by the field's name.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    name = "csv"
    about = "CSV with columns named by --column"

    def column(self, name: str) -> str:
        """Name of the column that holds a field."""
        return self.names.get(name, name)

    def matches(self, record: Mapping[str, Any]) -> bool:
        return all(self.column(name) in record for name in FIELDS[:2])

    def read(self, record: Mapping[str, Any]) -> Logged:
        value = {name: str(record.get(self.column(name)) or "") for name in FIELDS}
        if not value["request"].strip():
            raise Skipped("no request")
        asked = read_request(value["request"])
        check_finish(value["finish_reason"])
        answered = read_answer(value["response"])
        models = [value["model"], *asked.models, *answered.models]
        return replace(
            asked,
            response=answered.response,
            system_prompt=value["system_prompt"] or asked.system_prompt,
            models=tuple(dict.fromkeys(filter(None, models))),
        )
