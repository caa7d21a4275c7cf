"""Langfuse's exports: observations of the type GENERATION, from its page, API or blob storage.

Names are in camel case (page, API) or snake case (blob storage). ``input`` and ``output`` are what
the traced program gave: messages, an object with them, a message, or a text; in CSV, and in the
files of blob storage, as text of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from echolm.past_traffic.chat import decoded, read_answer, read_request
from echolm.past_traffic.record import Logged, Skipped

_MODELS = ("model", "providedModelName", "provided_model_name", "providedModel", "internalModel")
_OWN = ("traceId", "trace_id", "parentObservationId", "statusMessage", "status_message", "level")


class Langfuse:
    """See the module."""

    name = "langfuse"
    about = "Langfuse's exports of observations, JSON or CSV"

    def matches(self, record: Mapping[str, Any]) -> bool:
        return "input" in record and "output" in record and any(name in record for name in _OWN)

    def read(self, record: Mapping[str, Any]) -> Logged:
        models = [str(record[name]) for name in _MODELS if record.get(name)]
        kind = record.get("type")
        # The page's table of generations has no type; spans and events have no model.
        if str(kind).upper() != "GENERATION" if kind else not models:
            raise Skipped("no generation")
        if str(record.get("level") or "").upper() == "ERROR":
            raise Skipped("error")
        if decoded(record.get("tool_calls")) or decoded(record.get("toolCalls")):
            raise Skipped("tools")
        parameters = record.get("modelParameters") or record.get("model_parameters")
        asked = read_request(record.get("input"), parameters)
        answered = read_answer(record.get("output"))
        names = dict.fromkeys([*models, *asked.models, *answered.models])
        return replace(asked, response=answered.response, models=tuple(names))
