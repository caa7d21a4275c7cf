"""The pair's prompt format, for training and for evaluation.

    <|system|>{text}<|end|>                                 optional, first
    <|user|>{request}<|assistant|>{response}<|end|>         once per example
    <|user|>{request}<|assistant|>                          the request

Each marker is one token; an answer ends with ``<|end|>``. There is no BOS.
"""

from __future__ import annotations

from collections.abc import Sequence

PAD, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)


def render(
    request: str, examples: Sequence[tuple[str, str]] = (), system_prompt: str | None = None
) -> str:
    """The prompt for ``request`` behind ``examples``, (request, response) pairs."""
    parts = [] if system_prompt is None else [f"{SYSTEM}{system_prompt}{END}"]
    parts += [f"{USER}{asked}{ASSISTANT}{answered}{END}" for asked, answered in examples]
    parts.append(f"{USER}{request}{ASSISTANT}")
    return "".join(parts)
