from __future__ import annotations

import json
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm.llm.templates import TEMPLATES, template
from echolm.llm.tokens import EstimatedTokens, ExactTokens, token_counter
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL_TOKENS = sorted({token for t in TEMPLATES.values() for token in t.special_tokens})
_FRAGMENTS = sorted({m[:i] for m in SPECIAL_TOKENS for i in range(1, len(m))}) + sorted(
    {m[i:] for m in SPECIAL_TOKENS for i in range(1, len(m))}
)
hostile_text = st.lists(
    st.one_of(
        st.sampled_from(SPECIAL_TOKENS),
        st.sampled_from(_FRAGMENTS),
        st.sampled_from(["{request}", "{response}", "{system}", "\u200b", "\\1", "user", "\n"]),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)


def test_system_then_examples_then_request() -> None:
    text = template("echolm").render("now", [("q1", "a1"), ("q2", "a2")], "rules")
    assert text == (
        "<|system|>rules<|end|>"
        "<|user|>q1<|assistant|>a1<|end|>"
        "<|user|>q2<|assistant|>a2<|end|>"
        "<|user|>now<|assistant|>"
    )


def test_without_system_and_examples_there_is_only_the_request() -> None:
    assert template("echolm").render("now", []) == "<|user|>now<|assistant|>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_requests_that_share_examples_share_the_start_of_the_prompt(name: str) -> None:
    examples = [("past request", "past answer")]
    one, two = (template(name).render(r, examples, "sys") for r in ("1st", "2nd"))
    shared = one[: one.index("1st")]
    assert two.startswith(shared)
    assert all(part in shared for part in ("sys", "past request", "past answer"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_ends_where_the_answer_starts(name: str) -> None:
    prompt = template(name).render("now", [])
    assert prompt.index("now") < len(prompt) - len("now")
    assert prompt.rstrip("\n").endswith(
        ("<|assistant|>", "assistant", "model", "<|end_header_id|>")
    )


@pytest.mark.parametrize("name", TEMPLATES)
@given(
    request=hostile_text,
    examples=st.lists(st.tuples(hostile_text, hostile_text), max_size=3),
    system=hostile_text,
)
def test_no_text_can_bring_a_special_token_into_the_prompt(
    name: str, request: str, examples: list[tuple[str, str]], system: str
) -> None:
    """It has as many special tokens as with harmless texts, so no turn and no example is forged."""
    chosen = template(name)
    prompt = chosen.render(request, examples, system)
    harmless = chosen.render("r", [("q", "a")] * len(examples), "s" if system else "")
    for token in chosen.special_tokens:
        assert prompt.count(token) == harmless.count(token)


@given(text=hostile_text)
def test_only_special_tokens_are_changed(text: str) -> None:
    for chosen in TEMPLATES.values():
        changed = chosen.escape_special_tokens(text)
        assert changed.replace("\u200b", "") == text.replace("\u200b", "")
        if not any(token in text for token in chosen.special_tokens):
            assert changed == text


def test_placeholders_in_texts_stay_as_they_are() -> None:
    prompt = template("echolm").render("{response} {system}", [("{response}", "{request}")], "{x}")
    assert prompt == (
        "<|system|>{x}<|end|><|user|>{response}<|assistant|>{request}<|end|>"
        "<|user|>{response} {system}<|assistant|>"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_holds_its_special_tokens_and_its_places(name: str) -> None:
    chosen = template(name)
    assert "{system}" in chosen.system
    assert chosen.example.index("{request}") < chosen.example.index("{response}")
    assert "{request}" in chosen.request
    layout = chosen.example + chosen.request + chosen.system
    assert [token for token in chosen.special_tokens if token in layout]


def test_an_unknown_template_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"expected one of .*'chatml'.*, got 'nope'"):
        template("nope")


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert json.loads(path.read_text())["truncation"]
    return path


def test_exact_counts_ignore_the_files_truncation(tokenizer_json: Path) -> None:
    counter = token_counter(tokenizer_json)
    assert isinstance(counter, ExactTokens)
    assert counter.count("a b a b a") == 5
    assert counter.count("") == 0


def test_estimates_grow_with_bytes_and_are_never_zero() -> None:
    counter = token_counter(None)
    assert isinstance(counter, EstimatedTokens)
    assert counter.count("") == 1
    assert counter.count("abcde" * 10) == 21
    assert counter.count("é" * 50) == 41


def test_a_missing_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json.*missing\.json"):
        token_counter(tmp_path / "missing.json")
