"""From a request and its examples to the text that an LLM reads.

Text that contains a template's own special tokens must not be able to open a turn or forge an
example, so every special token found in a request, an example or a system prompt is escaped
before the text is put in place.
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
        preamble: comes before the examples if there are any.
    """

    system: str
    example: str
    request: str
    special_tokens: tuple[str, ...]
    preamble: str = ""

    def render(self, request: str, examples: Sequence[tuple[str, str]], system: str = "") -> str:
        """The prompt.

        Args:
            request: the request's text.
            examples: (request, response) pairs in the order in which they are shown.
            system: the system prompt; empty if there is none.
        """
        parts = []
        if system:
            parts.append(self.system.replace("{system}", self.escape_special_tokens(system)))
        if examples:
            parts.append(self.preamble)
        parts += [self._example(*pair) for pair in examples]
        parts.append(self.request.replace("{request}", self.escape_special_tokens(request)))
        return "".join(parts)

    def _example(self, request: str, response: str) -> str:
        # Both are replaced in one pass, so that a request that holds "{response}" stays as it is.
        values = {
            "{request}": self.escape_special_tokens(request),
            "{response}": self.escape_special_tokens(response),
        }
        return re.sub(r"\{request\}|\{response\}", lambda m: values[m[0]], self.example)

    def escape_special_tokens(self, text: str) -> str:
        """The text with every special token broken up, so that a tokenizer reads plain text."""
        for token in self.special_tokens:
            if token in text:
                text = text.replace(token, token[0] + _BREAK + token[1:])
        return text


def _turns(start: str, end: str, special_tokens: tuple[str, ...]) -> PromptTemplate:
    """A template in which each turn has the form ``start``, text, ``end``; ROLE is replaced."""

    def turn(role: str, body: str) -> str:
        return f"{start.replace('ROLE', role)}{body}{end}"

    return PromptTemplate(
        system=turn("system", "{system}"),
        example=turn("user", "{request}") + turn("assistant", "{response}"),
        request=turn("user", "{request}") + start.replace("ROLE", "assistant"),
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
        special_tokens=("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
    ),
}
"""Prompt templates by name: the demo pair's and those of common instruction-tuned LLMs."""


def template(name: str) -> PromptTemplate:
    """The template of that name; ConfigurationError if there is none."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise ConfigurationError(
            f"llms.prompt_template: expected one of {sorted(TEMPLATES)}, got {name!r}"
        ) from None
