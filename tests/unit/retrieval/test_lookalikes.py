"""Examples that only look like the request count less, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from echolm.conversation import Turn, transcript
from echolm.primitives import Candidate
from echolm.retrieval.lookalikes import doubted, nothing_unseen

FLOOR = 0.4
SALES = (
    "Show me the monthly revenue of the sales department",
    "Revenue of the sales department: 7",
)
SALES_TOO = ("What revenue had our sales department each month?", "Monthly revenue, sales: 8")
SHOPS = ("What revenue had our shops each month?", "Monthly revenue of shops: 8")
WEATHER = ("Will the weather in Lisbon be sunny?", "Lisbon expects sunshine and wind")


def follow_up(history: tuple[str, str], text: str = "and for May?") -> str:
    asked, said = history
    return transcript([Turn("user", asked), Turn("assistant", said), Turn("user", text)])


def similarity(
    request: str, stored: str, unseen: Callable[[str], float] = nothing_unseen
) -> float | None:
    """What is left of a cosine of 0.9; None if the example is no candidate any more."""
    found = doubted(request, [Candidate(1, stored, "r", "t", 1.0, 0.9)], FLOOR, unseen)
    return found[0].similarity if found else None


def test_single_turns_that_are_seen_whole_are_as_similar_as_the_model_says() -> None:
    assert similarity("list files", "show processes") == 0.9


def test_the_same_words_after_another_history_are_no_candidate() -> None:
    assert similarity(follow_up(SALES), follow_up(WEATHER)) is None


def test_a_follow_up_keeps_what_fits_its_history() -> None:
    assert similarity(follow_up(SALES), follow_up(SALES_TOO, "then what about May?")) == 0.9
    assert similarity(follow_up(SALES), follow_up(SALES)) == 0.9


def test_the_more_last_turns_are_alike_the_more_their_histories_must_be() -> None:
    asked = follow_up(SALES, "please show the same numbers for May")
    alike = "please show the same numbers for June"
    # How near histories are that are not told to be of another kind, the model says.
    assert similarity(asked, follow_up(SALES, alike)) == 0.9
    assert similarity(asked, follow_up(SHOPS, "in which towns did May sell best?")) == 0.9
    assert similarity(asked, follow_up(SHOPS, alike)) is None


def test_what_is_said_at_once_may_help_where_it_is_said_in_two_turns() -> None:
    at_once = "Show me the monthly revenue of the sales department for May"
    assert similarity(follow_up(SALES), at_once) is not None
    assert similarity(follow_up(SALES), "and for May?") is None
    assert similarity("and for May?", follow_up(SALES)) is None


LONG = " ".join(f"sentence{k} tells of topic{k % 40}" for k in range(200))


def partly(text: str) -> float:
    return 0.4 if len(text) > 1_000 else 0.0


@pytest.mark.parametrize("at_end", [True, False])
def test_long_texts_that_differ_at_one_end_are_no_candidates(at_end: bool) -> None:
    asked, stored = (
        "Translate everything above into formal Japanese prose please " * 3,
        ("Count which words occur most often within that document overall " * 3),
    )
    both = (f"{LONG} {q}" if at_end else f"{q} {LONG}" for q in (asked, stored))
    assert similarity(*both, partly) is None


def test_what_was_not_seen_takes_off_similarity_unless_the_texts_are_the_same() -> None:
    other = LONG.replace("topic39", "theme39")
    assert similarity(LONG, other, partly) == pytest.approx(0.9 - 0.5 * 0.2)
    assert similarity(LONG, LONG, partly) == 0.9


def test_long_texts_about_different_things_are_compared_by_the_model() -> None:
    other = " ".join(f"clause{k} concerns matter{k % 40}" for k in range(200))
    found = similarity(f"Summarise this. {LONG}", f"Summarise this. {other}", partly)
    assert found == pytest.approx(0.9 - 0.5 * 0.2)


def test_a_short_question_after_a_long_history_may_be_put_in_other_words() -> None:
    history = (f"{SALES[0]} {LONG}", SALES[1])
    found = similarity(follow_up(history, "and for May?"), follow_up(history, "also May"), partly)
    assert found == pytest.approx(0.9 - 0.5 * 0.2)


def test_no_similarity_falls_below_that_of_unrelated_requests_or_rises() -> None:
    request, stored = follow_up(SALES), follow_up(SALES_TOO, "then what about May?")
    low = doubted(request, [Candidate(1, stored, "r", "t", 1.0, 0.2)], FLOOR, nothing_unseen)
    assert [c.similarity for c in low] == [0.2]
