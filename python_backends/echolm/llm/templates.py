"""From a request and its examples to the text that an LLM reads.

No text may open a turn or forge an example, so every special token of the template that is found
in a request, an example or a system prompt is escaped before the text is put in place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from echolm.errors import ConfigurationError

_BREAK = "\u200b"  # ZERO WIDTH SPACE: invisible to a reader, another token to an LLM


@dataclass(frozen=True)
class PromptTemplate:
    """How an LLM's prompt is laid out.

    Attributes:
        system: comes first if there is a system prompt; holds ``{system}``.
        example: comes once for each example; holds ``{request}`` and ``{response}``.
        request: the request, up to where the LLM's answer starts; holds ``{request}``.
        special_tokens: strings with a meaning to the LLM, which no text may contain.
    """

    system: str
    example: str
    request: str
    special_tokens: tuple[str, ...]

    def render(self, request: str, examples: Sequence[tuple[str, str]], system: str = "") -> str:
        """The prompt with (request, response) pairs as examples, in the order given."""
        parts = [self._fill(self.system, system=system)] if system else []
        parts += [self._fill(self.example, request=r, response=a) for r, a in examples]
        return "".join([*parts, self._fill(self.request, request=request)])

    def _fill(self, part: str, **texts: str) -> str:
        # In one pass, so that a request that holds "{response}" stays as it is.
        names = "|".join(texts)
        return re.sub(rf"{{({names})}}", lambda m: self.escape_special_tokens(texts[m[1]]), part)

    def escape_special_tokens(self, text: str) -> str:
        """The text with every special token broken up, so that a tokenizer reads plain text."""
        for token in self.special_tokens:
            if token in text:
                text = text.replace(token, token[0] + _BREAK + token[1:])
        return text


def _turns(
    start: str,
    end: str,
    special_tokens: tuple[str, ...],
    system: str = "system",
    assistant: str = "assistant",
) -> PromptTemplate:
    """A template in which each turn has the form ``start``, text, ``end``; ROLE is replaced."""

    def turn(role: str, body: str) -> str:
        return f"{start.replace('ROLE', role)}{body}{end}"

    return PromptTemplate(
        system=turn(system, "{system}"),
        example=turn("user", "{request}") + turn(assistant, "{response}"),
        request=turn("user", "{request}") + start.replace("ROLE", assistant),
        special_tokens=special_tokens,
    )


TEMPLATES: dict[str, PromptTemplate] = {
    "echolm": PromptTemplate(
        system="<|system|>{system}<|end|>",
        example="<|user|>{request}<|assistant|>{response}<|end|>",
        request="<|user|>{request}<|assistant|>",
        special_tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"),
    ),
    "chatml": _turns(
        "<|im_start|>ROLE\n", "<|im_end|>\n", ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    ),
    "llama3": _turns(
        "<|start_header_id|>ROLE<|end_header_id|>\n\n",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
        + ("<|begin_of_text|>", "<|end_of_text|>", "<|python_tag|>"),
    ),
    "gemma": _turns(
        "<start_of_turn>ROLE\n",
        "<end_of_turn>\n",
        ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
        system="user",
        assistant="model",
    ),
}
"""Prompt templates by name: the demo pair's and those of common instruction-tuned LLMs."""


def template(name: str) -> PromptTemplate:
    """The template of that name; ConfigurationError if there is none."""
    if name not in TEMPLATES:
        expected = sorted(TEMPLATES)
        raise ConfigurationError(f"llms.prompt_template: expected one of {expected}, got {name!r}")
    return TEMPLATES[name]
