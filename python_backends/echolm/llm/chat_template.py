"""An LLM's chat template: from the turns of a conversation to the text that the LLM reads.

Templates are written in Jinja2 and come with checkpoints. They are rendered as
``transformers.utils.chat_template_utils`` (5.24) renders them, so that an LLM reads what it was
trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from echolm.conversation import Turn, turns_of
from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.llm.special_tokens import SpecialTokens
from echolm.llm.tokenizer_files import (
    DEFAULT,
    TOOL_USE,
    TokenizerFiles,
    read_text,
    read_tokenizer_files,
)

BUILT_IN: Mapping[str, str] = {
    "echolm": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] + '<|end|>' }}"
        "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
        "{% else %}{{ raise_exception('there is no role ' + message['role']) }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{{ 'Request:\n' + message['content'] + '\n\nAnswer:\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + '\n\n' }}"
        "{% else %}{{ raise_exception('there is no role ' + message['role']) }}{% endif %}"
        "{% endfor %}"
    ),
}
"""Templates for checkpoints that have none: that of the pair that EchoLM ships, a common one, and
one for base models, which know no turns."""

_STOP: Mapping[str, tuple[str, ...]] = {"plain": ("\n\nRequest:",)}
"""What ends an answer, by built-in template, where no token does."""
_MORE_SPECIAL: Mapping[str, tuple[str, ...]] = {
    "echolm": ("<|pad|>",),
    "chatml": ("<|endoftext|>",),
}
"""Tokens that tokenizers of a built-in template have, and that it does not write."""

_MARKER = re.compile(
    r"<([|\uff5c])[^<>|\uff5c\s]{1,40}\1>|</?[a-z]+(?:_[a-z]+)+>|\[/?[A-Z_]{3,40}\]|<</?[A-Z]+>>"
)
"""What markers of turns look like, be they tokens or not."""
_LONGEST_MARKER = 40
_REASONING = frozenset(("<think>", "</think>"))
"""By these templates cut the reasoning off earlier answers."""

_ROLES = ("user", "assistant", "system", "tool")
_CALL = '[{"id": "abcdefghi", "type": "function", "function": {"name": "f"}}]'


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


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@dataclass(frozen=True)
class _Facts:
    """What renderings of small conversations tell of a template.

    Attributes:
        roles: those whose text reaches the LLM.
        late_system: whether that of a system message does that does not come first.
        alternates: whether two turns in a row must not have the same role.
        markers: what the template writes around turns that looks like a marker, or is a line of
            its own between two turns.
        end: what comes directly after an answer.
    """

    roles: frozenset[str]
    late_system: bool
    alternates: bool
    markers: frozenset[str]
    end: str


class ChatTemplate:
    """Renders the prompts of one LLM. Safe to use from several threads.

    Args:
        sources: Jinja2 source by name: ``default``, and maybe ``tool_use``.
        files: what is known of the LLM's tokenizer.
        arguments: more variables of the template, such as ``enable_thinking``.
        stop: what ends an answer besides what a request says.
        name: where the template comes from, for messages.

    Attributes:
        roles, alternates: see the template's facts in :class:`_Facts`.
        added_bos: see :class:`~echolm.llm.tokenizer_files.TokenizerFiles`; empty if prompts do not
            begin with that token.

    Raises:
        ConfigurationError: the source is no template, or cannot render a request.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        files: TokenizerFiles | None = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        stop: Sequence[str] = (),
        name: str = "chat template",
        more_special: Sequence[str] = (),
    ) -> None:
        self.name, self.stop = name, tuple(stop)
        self._files = files = files or TokenizerFiles()
        self._variables = {**files.named, **(arguments or {})}
        self._templates = {key: self._compiled(source) for key, source in sources.items()}
        self._facts = facts = self._probe()
        self.roles, self.alternates = facts.roles, facts.alternates
        literals = "\n".join(_literals(source) for source in sources.values())
        in_template = {t for t in files.added if t in literals and not t.isspace()}
        markers = {*facts.markers, *_marks(literals)}
        tokens = {*files.special, *in_template, *markers, *more_special}
        # An answer's reasoning stays as it is where no special token forbids that.
        reasoning = _REASONING - files.special
        self.special_tokens = SpecialTokens(tokens, files.added, files.tokenizer)
        self._answers = SpecialTokens(tokens - reasoning, files.added, files.tokenizer)

    def render(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None) -> str:
        """The prompt of a conversation, up to where the LLM's answer begins.

        Args:
            turns: oldest first; the system prompt is the first one, if there is one.
            tools: descriptions of tools as in OpenAI's API.

        Raises:
            InvalidRequestError: the template refuses the conversation.
        """
        for turn in turns:
            if turn.role not in self.roles and turn.role != "system":
                expected = f"roles that the LLM's chat template has, {sorted(self.roles)}"
                raise InvalidRequestError.of("messages", expected, turn.role)
        try:
            messages = [self._message(turn) for turn in self._adapted(turns)]
            escaped = None if tools is None else self.special_tokens.escape_all(list(tools))
            return self._rendered(messages, escaped)
        # A template is a program, which fails in its own ways; and JSON may be nested too deep.
        except Exception as error:
            raise InvalidRequestError.of(
                "messages", "a conversation that the LLM's chat template takes", _said(error)
            ) from error

    @cached_property
    def added_bos(self) -> str:
        bos = self._files.added_bos
        return bos if bos and self._rendered([_message("user", "a")]).startswith(bos) else ""

    @property
    def end_of_turn(self) -> str:
        """The token that ends an answer in a conversation; empty if none does, or none is known."""
        return self._facts.end

    def _compiled(self, source: str) -> Template:
        try:
            return _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigurationError(
                f"{self.name}: expected a Jinja2 template, got: {error} (line {error.lineno})"
            ) from error

    def _rendered(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        name = TOOL_USE if tools and TOOL_USE in self._templates else DEFAULT
        return self._templates[name].render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=True,
            **self._variables,
        )

    def _message(self, turn: Turn) -> dict[str, Any]:
        special = self._answers if turn.role == "assistant" else self.special_tokens
        message: dict[str, Any] = _message(turn.role, special.escape(turn.text))
        if calls := self.special_tokens.escape_all(_tool_calls(turn.tool_calls)):
            message["tool_calls"] = calls
        if turn.tool_call_id:
            message["tool_call_id"] = self.special_tokens.escape(turn.tool_call_id)
        return message

    def _adapted(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns in a form that the template takes."""
        first = 1 if turns[0].role == "system" and "system" in self.roles else 0
        if not self._facts.late_system:
            turns = [*turns[:first], *_without_system(turns[first:])]
        return list(_joined(turns)) if self.alternates else turns

    def _probe(self) -> _Facts:
        user, answer, again = (_message(r, t) for r, t in zip(_PROBE_ROLES, _PROBE, strict=True))
        try:
            self._rendered([user])
            self._rendered([user, answer, again])
        except Exception as error:
            raise ConfigurationError(
                f"{self.name}: expected a chat template that renders a request after another and "
                f"its answer, got: {_said(error)}; tokens that it names come from the files in "
                "llms.tokenizer, other variables from llms.chat_template_args"
            ) from error
        system, called = _message("system", "Sys5tem"), {**answer, "tool_calls": _tool_calls(_CALL)}
        result = {**_message("tool", "Res6ult"), "tool_call_id": "abcdefghi"}
        rendered = {
            "user": self._attempt([user]),
            "assistant": self._attempt([user, answer, again]),
            "system": self._attempt([system, user]),
            "tool": self._attempt([user, called, result]),
            "late": self._attempt([user, answer, system, again]),
            "same": self._attempt([user, answer, answer, again]),
        }
        roles = {
            role
            for role, text in zip(_ROLES, (*_PROBE[:2], "Sys5tem", "Res6ult"), strict=True)
            if text in rendered[role]
        }
        between = rendered["assistant"] if "assistant" in roles else ""
        end = between.partition(_PROBE[1])[2].partition(_PROBE[2])[0]
        return _Facts(
            frozenset(roles),
            "Sys5tem" in rendered["late"],
            rendered["same"].count(_PROBE[1]) < 2,
            frozenset(self._markers(rendered)),
            self._first_token(end),
        )

    def _attempt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The rendering; empty if there is none."""
        try:
            return self._rendered(messages)
        except Exception:
            return ""

    def _markers(self, rendered: Mapping[str, str]) -> Iterator[str]:
        for text in rendered.values():
            yield from _marks(text)
        split = re.compile("|".join(map(re.escape, (*_PROBE, "Sys5tem", "Res6ult"))))
        known = self._files.special | {m for t in rendered.values() for m in _marks(t)}
        lines = re.compile("|".join(map(re.escape, sorted(known, reverse=True))) or "(?!)")
        for name in ("assistant", "system"):
            # What is before the first turn is no marker: it may be any text.
            for piece in split.split(rendered[name])[1:]:
                for line in lines.sub("\n", piece).splitlines():
                    line = line.strip()
                    is_marker = re.search(r"[^\W_]", line) and re.search(r"[^\w\s]", line)
                    if is_marker and len(line) <= _LONGEST_MARKER:
                        yield line

    def _first_token(self, text: str) -> str:
        """The special token with which a text begins, white space apart."""
        text = text.lstrip()
        starts = {*self._files.special, *self._files.added, *_marks(text)}
        return max((token for token in starts if text.startswith(token)), key=len, default="")


_PROBE_ROLES = ("user", "assistant", "user")
_PROBE = ("Que1stion", "Ans2wer", "Fur3ther")
"""Texts of turns that no template holds."""


def few_shot(
    turns: Sequence[Turn], examples: Iterable[tuple[str, str]] = (), system: str = ""
) -> list[Turn]:
    """A conversation after its system prompt and after examples as earlier turns.

    Args:
        examples: (request, response) pairs, in order; a request is a transcript.
    """
    before = [Turn("system", system)] if system else []
    for request, response in examples:
        before += [*turns_of(request), Turn("assistant", response)]
    return [*before, *turns]


def load_chat_template(
    chosen: str, tokenizer: Path | None, arguments: Mapping[str, Any] | None = None
) -> ChatTemplate:
    """The chat template of an LLM.

    Args:
        chosen: ``llms.chat_template``: a folder, a file, or the name of a built-in template;
            empty: that of the tokenizer's folder.
        tokenizer: ``llms.tokenizer``: a folder, or the ``tokenizer.json`` in it.

    Raises:
        ConfigurationError: there is no template, or it does not suit the tokenizer.
    """
    files = TokenizerFiles() if tokenizer is None else read_tokenizer_files(tokenizer)
    if chosen in BUILT_IN:
        template = ChatTemplate(
            {DEFAULT: BUILT_IN[chosen]},
            files,
            arguments,
            stop=_STOP.get(chosen, ()),
            name=f"llms.chat_template {chosen!r}",
            more_special=_MORE_SPECIAL.get(chosen, ()),
        )
        _check_markers(template, files)
        return template
    if not chosen:
        path, sources = files.folder, files.templates
    elif (path := Path(chosen)).is_dir():
        other = read_tokenizer_files(path)
        sources = other.templates
        files = other if tokenizer is None else files
    elif path.is_file():
        sources = {DEFAULT: read_text(path)}
    else:
        raise ConfigurationError(
            f"llms.chat_template: expected a folder, a .jinja file or one of "
            f"{', '.join(BUILT_IN)}, got {chosen!r}"
        )
    if DEFAULT not in sources:
        place = path or "llms.tokenizer, which is not set"
        got = f"only {', '.join(sorted(sources))}" if sources else "none"
        raise ConfigurationError(
            "llms.chat_template: expected a chat_template.jinja, or a tokenizer_config.json with a "
            f"chat_template, in {place}, got {got}; set llms.tokenizer to the checkpoint's folder, "
            f"or llms.chat_template to a .jinja file or to one of {', '.join(BUILT_IN)}"
        )
    template = ChatTemplate(sources, files, arguments, name=str(path))
    if files.folder is not None and path is not None and files.folder.resolve() != path.resolve():
        _check_markers(template, files)
    return template


def _check_markers(template: ChatTemplate, files: TokenizerFiles) -> None:
    """ConfigurationError if what looks like a token in prompts is none to the tokenizer.

    A checkpoint's own template may write markers that are no tokens: its LLM was trained so.
    """
    if files.tokenizer is None:
        return
    prompt = template.render([Turn("user", "a"), Turn("assistant", "a"), Turn("user", "a")])
    unknown = {m for m in _marks(prompt) if files.tokenizer.token_to_id(m) is None}
    if unknown:
        raise ConfigurationError(
            f"{template.name}: expected markers that are tokens of the tokenizer in "
            f"{files.folder}, got {', '.join(sorted(unknown))}, which it reads as text; leave "
            "llms.chat_template out, so that the checkpoint's own template is taken, or put the "
            "template into the tokenizer's folder as chat_template.jinja if it is"
        )


def _literals(source: str) -> str:
    """What a template can write by itself: its text and the strings in its code."""
    tree = _environment().parse(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return "\n".join(
        texts + [n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)]
    )


def _marks(text: str) -> set[str]:
    """What looks like a marker in a text."""
    return {match[0] for match in _MARKER.finditer(text)}


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _tool_calls(text: str) -> list[dict[str, Any]]:
    """The calls of a :class:`~echolm.conversation.Turn`; none if a stored text holds no such.

    Templates want the arguments as an object, where OpenAI's API has them as text.
    """
    calls: list[dict[str, Any]] = []
    with suppress(ValueError, TypeError, LookupError):
        calls = [{**call, "function": {**call["function"]}} for call in json.loads(text or "[]")]
    for call in calls:
        arguments = call["function"].get("arguments") or {}
        if isinstance(arguments, str):
            with suppress(ValueError):  # the LLM may have written anything
                arguments = json.loads(arguments)
        call["function"]["arguments"] = arguments
    return calls


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"


def _without_system(turns: Sequence[Turn]) -> Iterator[Turn]:
    """The turns with the texts of system messages in front of the user's next one."""
    waiting: list[str] = []
    for turn in turns:
        if turn.role == "system":
            waiting.append(turn.text)
        elif turn.role == "user" and waiting:
            yield Turn("user", "\n\n".join([*waiting, turn.text]))
            waiting = []
        else:
            yield turn
    if waiting:
        yield Turn("user", "\n\n".join(waiting))


def _joined(turns: Sequence[Turn]) -> Iterator[Turn]:
    """The turns with neighbours of one role as one, as far as they are text only."""
    for _, group in groupby(turns, key=lambda t: (t.role, t.tool_calls, t.tool_call_id)):
        same = list(group)
        if len(same) == 1 or same[0].tool_calls or same[0].tool_call_id:
            yield from same
        else:
            yield Turn(same[0].role, "\n\n".join(turn.text for turn in same))
