"""From a request and its examples to the text that an LLM reads.

Text that contains a template's own markers must not be able to open a turn or forge an
example, so every marker found in a request, an example or a system prompt is broken up
before it is put in place.
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
        system: put first if there is a system prompt; holds ``{system}``.
        example: once for each example; holds ``{request}`` and ``{response}``.
        request: the request itself, up to where the LLM's answer starts; holds ``{request}``.
        preamble: put before the examples if there are any.
        markers: strings with a meaning to the LLM, which no text may contain.
    """

    system: str
    example: str
    request: str
    markers: tuple[str, ...]
    preamble: str = ""

    def render(self, request: str, examples: Sequence[tuple[str, str]], system: str = "") -> str:
        """The prompt.

        Args:
            examples: (request, response) pairs in the order in which they are shown.
        """
        parts = (
            [self.system.replace("{system}", self.escape_special_tokens(system))] if system else []
        )
        if examples:
            parts.append(self.preamble)
        parts += [self._example(*pair) for pair in examples]
        parts.append(self.request.replace("{request}", self.escape_special_tokens(request)))
        return "".join(parts)

    def _example(self, request: str, response: str) -> str:
        # One pass, so that a request holding "{response}" stays as it is.
        values = {
            "{request}": self.escape_special_tokens(request),
            "{response}": self.escape_special_tokens(response),
        }
        return re.sub(r"\{request\}|\{response\}", lambda m: values[m[0]], self.example)

    def escape_special_tokens(self, text: str) -> str:
        """The text with every marker broken up, so that a tokenizer reads it as plain text."""
        for marker in self.markers:
            if marker in text:
                text = text.replace(marker, marker[0] + _BREAK + marker[1:])
        return text


def _turns(start: str, end: str, markers: tuple[str, ...]) -> PromptTemplate:
    def turn(role: str, body: str) -> str:
        return f"{start.replace('ROLE', role)}{body}{end}"

    return PromptTemplate(
        system=turn("system", "{system}"),
        example=turn("user", "{request}") + turn("assistant", "{response}"),
        request=turn("user", "{request}") + start.replace("ROLE", "assistant"),
        markers=markers,
    )


TEMPLATES: dict[str, PromptTemplate] = {
    "echolm": PromptTemplate(
        system="<|system|>{system}<|end|>",
        example="<|user|>{request}<|assistant|>{response}<|end|>",
        request="<|user|>{request}<|assistant|>",
        markers=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"),
    ),
    "chatml": _turns(
        "<|im_start|>ROLE\n", "<|im_end|>\n", ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    ),
    "llama3": _turns(
        "<|start_header_id|>ROLE<|end_header_id|>\n\n",
        "<|eot_id|>",
        (
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|eom_id|>",
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|python_tag|>",
        ),
    ),
    "gemma": PromptTemplate(
        system="<start_of_turn>user\n{system}<end_of_turn>\n",
        example="<start_of_turn>user\n{request}<end_of_turn>\n"
        "<start_of_turn>model\n{response}<end_of_turn>\n",
        request="<start_of_turn>user\n{request}<end_of_turn>\n<start_of_turn>model\n",
        markers=("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
    ),
}
"""Prompt templates by name: that of the demo pair and those of common instruction-tuned LLMs."""


def template(name: str) -> PromptTemplate:
    """The template of that name; ConfigurationError if there is none."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise ConfigurationError(
            f"llms.prompt_template: expected one of {sorted(TEMPLATES)}, got {name!r}"
        ) from None
