from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from echolm_lab.tasks import CatalogueSize, Workload
from echolm_lab.tasks.values import KINDS, STYLES
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[4]
TOKENIZER = ROOT / "model_repository/local/small_llm/1/openvino/tokenizer.json"


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(seed=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


def test_same_seed_gives_the_same_intents_and_requests(workload):
    again = Workload(seed=0)
    assert again.intents == workload.intents
    assert again.stream(50, seed=3, phase="live") == workload.stream(50, seed=3, phase="live")


def test_another_seed_gives_other_intents_and_other_requests(workload):
    assert Workload(seed=1).intents[0].answer != workload.intents[0].answer
    assert workload.stream(20, seed=3) != workload.stream(20, seed=4)


def test_the_catalogue_is_as_large_as_promised(workload):
    assert len(workload.intents) >= 600
    assert {i.domain for i in workload.intents} == {"shell", "sql", "tools", "support"}
    assert all(len(set(i.wordings)) >= 5 for i in workload.intents)
    assert [i.id for i in workload.intents] == list(range(len(workload.intents)))


def test_the_small_llm_never_saw_a_fifth_of_the_intents_of_each_domain(workload):
    for domain in ("shell", "sql", "tools", "support"):
        seen = [i.seen_by_small for i in workload.intents if i.domain == domain]
        assert 0.2 <= 1 - sum(seen) / len(seen) <= 0.75


def test_one_offs_are_never_seen_by_the_small_llm(workload):
    assert not any(i.seen_by_small for i in workload.intents if i.phase == "one_off")


def test_wordings_and_answers_hold_the_same_slots(workload):
    for intent in workload.intents:
        for slot in intent.slots:
            assert slot.mark in intent.answer
            assert all(text.count(slot.mark) == 1 for text in intent.wordings)


def test_answers_hold_their_house_conventions_and_are_all_different(workload):
    for intent in workload.intents:
        assert len(intent.house) >= 3
        assert all(value in intent.answer for value in intent.house)
    assert len({i.answer for i in workload.intents}) == len(workload.intents)


def test_lookalikes_share_all_but_the_flag_and_differ_in_the_answer(workload):
    pairs = [i for i in workload.intents if i.lookalike_of is not None]
    assert len(pairs) >= 40
    for intent in pairs:
        base = workload.intents[intent.lookalike_of]
        assert (intent.subject, intent.slots) == (base.subject, base.slots)
        assert intent.answer != base.answer
        assert not set(intent.wordings) & set(base.wordings)
        assert intent.seen_by_small == base.seen_by_small


def test_the_past_holds_only_intents_of_the_past(workload):
    items = workload.stream(2000, seed=5, phase="past")
    assert {workload.intents[i.intent_id].phase for i in items} == {"past"}
    assert {i.kind for i in items} == {"known", "lookalike"}


def test_the_live_mix_has_the_promised_shares(workload):
    items = workload.stream(4000, seed=6, phase="live")
    share = {kind: count / len(items) for kind, count in Counter(i.kind for i in items).items()}
    assert share["one_off"] == pytest.approx(0.04, abs=0.015)
    assert share["late"] == pytest.approx(0.05, abs=0.015)
    assert share["lookalike"] == pytest.approx(0.08, abs=0.02)


def test_shares_can_be_set(workload):
    items = workload.stream(500, seed=6, phase="live", one_off=0.0, late=0.0, lookalike=0.0)
    assert {i.kind for i in items} == {"known"}
    items = workload.stream(500, seed=6, phase="live", one_off=1.0)
    assert {i.kind for i in items} == {"one_off"}


def test_late_intents_come_back_after_their_first_request(workload):
    items = [i for i in workload.stream(1000, seed=8, phase="live") if i.kind == "late"]
    assert len(items) / len({i.intent_id for i in items}) >= 3


def test_popular_intents_dominate(workload):
    counts = Counter(i.intent_id for i in workload.stream(4000, seed=9))
    assert sum(c for _, c in counts.most_common(50)) > 1500
    flat = Counter(i.intent_id for i in workload.stream(4000, seed=9, zipf=0.0, lookalike=None))
    assert flat.most_common(1)[0][1] < counts.most_common(1)[0][1] / 4


def test_an_unknown_phase_is_refused(workload):
    with pytest.raises(ValueError, match="phase"):
        workload.stream(1, seed=0, phase="future")


def test_answers_have_60_to_150_tokens_and_80_on_average(workload, tokenizer):
    items = workload.stream(4000, seed=10, phase="live", zipf=0.0)
    counts = [len(e.ids) for e in tokenizer.encode_batch([i.answer for i in items])]
    assert min(counts) >= 60 and max(counts) <= 150
    assert sum(counts) / len(counts) >= 80


def test_requests_are_short(workload, tokenizer):
    items = workload.stream(2000, seed=11, phase="live")
    counts = sorted(len(e.ids) for e in tokenizer.encode_batch([i.text for i in items]))
    assert counts[len(counts) // 2] <= 35 and counts[-1] <= 70


def test_slot_values_are_never_plain_words(workload):
    rng = Random(0)
    for make in KINDS.values():
        for _ in range(200):
            value = make(rng)
            assert not value.islower() or not value.isalpha()


def test_slot_values_keep_their_tokens_wherever_they_stand(tokenizer):
    """What makes copying easy: the split rule never joins a value with the text around it."""
    rng = Random(1)
    for kind, make in KINDS.items():
        for _ in range(50):
            value = make(rng)
            bare = tokenizer.encode(value).tokens
            quoted = tokenizer.encode(f'"{value}"').tokens
            spaced = tokenizer.encode(f"on {value} now").tokens
            wanted = bare[1:] if kind == "path" else bare
            for tokens in (quoted, spaced):
                assert any(tokens[n : n + len(wanted)] == wanted for n in range(len(tokens))), (
                    kind,
                    value,
                    tokens,
                )


def test_conventions_are_opaque_and_plentiful():
    rng = Random(2)
    for make in STYLES.values():
        assert len({make(rng) for _ in range(200)}) > 100


def test_a_small_catalogue_can_be_built():
    size = CatalogueSize(past=6, lookalikes=2, late=2, one_off=2)
    workload = Workload(seed=0, size=size)
    assert len(workload.intents) == 4 * (6 + 2 + 2 + 2)
    assert len(workload.stream(40, seed=0, phase="live")) == 40


def test_both_llms_share_the_tokenizer_and_end_answers_with_its_end_token():
    folders = [ROOT / f"model_repository/local/{n}_llm/1/openvino" for n in ("small", "large")]
    assert len({(folder / "tokenizer.json").read_bytes() for folder in folders}) == 1
    for folder in folders:
        end = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|end|>")
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == end
        assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] >= 2048


def test_the_committed_weights_stay_within_their_limits():
    sizes = [p.stat().st_size for p in ROOT.glob("model_repository/local/*/1/openvino/*.bin")]
    assert max(sizes) <= 64_000_000 and sum(sizes) <= 80_000_000


def test_the_catalogue_is_the_one_that_the_pair_was_trained_on(workload):
    """A change of any answer would make the trained LLMs wrong: train them anew then."""
    digest = hashlib.sha256("\0".join(i.answer for i in workload.intents).encode()).hexdigest()
    assert digest == "f4298a26de30c99db4a58d1879c27d01763573acf963d1ead08eeb960475574a"
