"""An LLM's chat template: from the turns of a conversation to the text that the LLM reads.

Templates are written in Jinja2 and come with checkpoints. They are rendered as
``transformers.utils.chat_template_utils`` (5.24) renders them, so that an LLM reads what it was
trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from echolm.conversation import Turn, turns_of
from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.llm.jinja import environment, literals, said
from echolm.llm.special_tokens import SpecialTokens
from echolm.llm.template_facts import markers_in, read_facts
from echolm.llm.template_messages import Message, message, tool_calls
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

_REASONING = frozenset(("<think>", "</think>"))
"""By these templates cut the reasoning off earlier answers."""


class ChatTemplate:
    """Renders the prompts of one LLM. Safe to use from several threads.

    Args:
        sources: Jinja2 source by name: ``default``, and maybe ``tool_use``.
        files: what is known of the LLM's tokenizer.
        arguments: more variables of the template, such as ``enable_thinking``.
        stop: what ends an answer besides what a request says.
        name: where the template comes from, for messages.

    Attributes:
        facts: how the template treats conversations.
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
        try:
            self.facts = read_facts(self._rendered, {*files.special, *files.added})
        except Exception as error:
            raise ConfigurationError(
                f"{name}: expected a chat template that renders a request after another and its "
                f"answer, got: {said(error)}; tokens that it names come from the files in "
                "llms.tokenizer, other variables from llms.chat_template_args"
            ) from error
        written = "\n".join(literals(source) for source in sources.values())
        in_template = {t for t in files.added if t in written and not t.isspace()}
        markers = {*self.facts.markers, *markers_in(written)}
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
            if turn.role not in self.facts.roles and turn.role != "system":
                expected = f"roles that the LLM's chat template has, {sorted(self.facts.roles)}"
                raise InvalidRequestError.of("messages", expected, turn.role)
        try:
            messages = [self._message(turn) for turn in self._adapted(turns)]
            escaped = None if tools is None else self.special_tokens.escape_all(list(tools))
            return self._rendered(messages, escaped)
        # A template is a program, which fails in its own ways; and JSON may be nested too deep.
        except Exception as error:
            raise InvalidRequestError.of(
                "messages", "a conversation that the LLM's chat template takes", said(error)
            ) from error

    @cached_property
    def added_bos(self) -> str:
        bos = self._files.added_bos
        return bos if bos and self._rendered([message("user", "a")]).startswith(bos) else ""

    def _compiled(self, source: str) -> Template:
        try:
            return environment().from_string(source)
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

    def _message(self, turn: Turn) -> Message:
        special = self._answers if turn.role == "assistant" else self.special_tokens
        made = message(turn.role, special.escape(turn.text))
        if calls := self.special_tokens.escape_all(tool_calls(turn.tool_calls)):
            made["tool_calls"] = calls
        if turn.tool_call_id:
            made["tool_call_id"] = self.special_tokens.escape(turn.tool_call_id)
        return made

    def _adapted(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns in a form that the template takes."""
        first = 1 if turns[0].role == "system" and "system" in self.facts.roles else 0
        if not self.facts.late_system:
            turns = [*turns[:first], *_without_system(turns[first:])]
        return list(_joined(turns)) if self.facts.alternates else turns


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
            # An LLM whose tokenizer begins every text with a token was trained so.
            {DEFAULT: "{{ added_bos }}" + BUILT_IN[chosen]},
            files,
            {"added_bos": files.added_bos, **(arguments or {})},
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
    unknown = {m for m in markers_in(prompt) if files.tokenizer.token_to_id(m) is None}
    if unknown:
        raise ConfigurationError(
            f"{template.name}: expected markers that are tokens of the tokenizer in "
            f"{files.folder}, got {', '.join(sorted(unknown))}, which it reads as text; leave "
            "llms.chat_template out, so that the checkpoint's own template is taken, or put the "
            "template into the tokenizer's folder as chat_template.jinja if it is"
        )


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
