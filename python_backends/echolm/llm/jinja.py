"""Jinja2 as ``transformers.utils.chat_template_utils`` (5.24) sets it up for chat templates."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """The tag ``generation``, which marks what the LLM says; training looks at it."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own way to say it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter writes HTML's special characters as escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def environment() -> ImmutableSandboxedEnvironment:
    """A sandbox in which a template can change nothing and reach nothing but what it is given."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def literals(source: str) -> str:
    """What a template can write by itself: its text and the strings in its code."""
    tree = environment().parse(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return "\n".join(
        texts + [n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)]
    )


def said(error: Exception) -> str:
    """What a template, or Jinja2, says about why it cannot be rendered."""
    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
