"""How the programs here tell what came of their calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any


def report(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Make all calls; a line of JSON says what each returned, or its error."""
    found: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            found[name] = call()
        except Exception as error:
            found[name] = {"error": type(error).__name__, "message": str(error)[:2_000]}
    print(json.dumps(found))
