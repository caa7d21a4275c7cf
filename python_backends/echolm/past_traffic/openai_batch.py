"""Input and output files of OpenAI's Batch API, joined by ``custom_id``.

A line of an input file is ``{"custom_id": …, "method": "POST", "url": "/v1/chat/completions",
"body": {…}}``; one of an output or error file is ``{"id": …, "custom_id": …, "response":
{"status_code": 200, "request_id": …, "body": {…}}, "error": null}``, in any order.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from echolm.past_traffic.openai import pair
from echolm.past_traffic.reading import Row
from echolm.past_traffic.record import UNKNOWN, Logged, Skipped

_CHAT = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/chat/completions")


class OpenAIBatch:
    """See the module."""

    name = "openai-batch"
    about = "input and output files of OpenAI's Batch API, given together"

    def matches(self, record: Mapping[str, Any]) -> bool:
        return "custom_id" in record and ("body" in record or "response" in record)

    def read(self, record: Mapping[str, Any]) -> Logged:
        if record.get("url") not in (None, *_CHAT):
            raise Skipped("no chat")
        if record.get("error"):
            raise Skipped("error")
        if "body" not in record:
            raise Skipped("no request")
        if "response" not in record:
            raise Skipped("no answer")
        return pair(record["body"], record["response"])


def joined(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of inputs and outputs, each pair as one; a part without the other stays by itself.

    They wait on disk for each other, since outputs come in any order and files may be large.
    """
    with closing(sqlite3.connect("")) as waiting:  # a file of its own, gone in the end
        waiting.execute(
            "CREATE TABLE parts (id TEXT, is_output INTEGER, file TEXT, line INTEGER,"
            " record TEXT, PRIMARY KEY (id, is_output)) WITHOUT ROWID"
        )
        for row in rows:
            record = row.record
            if record is None:
                yield row
                continue
            id, is_output = record.get("custom_id"), "response" in record
            if not isinstance(id, str) or is_output == ("body" in record):
                yield Row(row.file, row.line, None, UNKNOWN)
                continue
            other = waiting.execute(
                "DELETE FROM parts WHERE id = ? AND is_output = ? RETURNING file, line, record",
                (id, not is_output),
            ).fetchone()
            if other is None:
                values = (id, is_output, row.file, row.line, json.dumps(record))
                waiting.execute("REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", values)
            else:
                yield Row(row.file, row.line, {**json.loads(other[2]), **record})
        for file, line, record in waiting.execute("SELECT file, line, record FROM parts"):
            yield Row(file, line, json.loads(record))
