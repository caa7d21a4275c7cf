from __future__ import annotations

from typing import Any


def tokens_input(
    prompt_token_ids: list[int], *, prompt: str | None = None, cache_salt: str | None = None
) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": prompt_token_ids}
