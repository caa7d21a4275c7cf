"""A stream of requests, some of them repeats and some of them traps, and what the store may answer.

The right answer of each request is known, since the data set gives it. No LLM runs: the strongest
LLM's answer is taken to be the right one. Retrieval's and the bandit's own code decides what is
answered from the store; the search is exact.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from echolm.bandit.reuse import COMPARISON, Comparison, ReuseModel, describe
from echolm.learning.event_log import Event
from echolm.primitives import Candidate, Reusable
from echolm.retrieval.reuse import find_reusable, normalised
from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to FP32 [n, D], unit length."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPPOSITES = (
    *(("lost", "found"), ("before", "after"), ("activate", "deactivate"), ("freeze", "unfreeze")),
    *(("deposit", "withdraw"), ("send", "receive"), ("increase", "decrease"), ("open", "close")),
    *(("top up", "cash out"), ("first", "last"), ("greater", "smaller"), ("largest", "smallest")),
    *(("including", "excluding"), ("more", "fewer"), ("add", "remove"), ("can", "cannot")),
    *(("with", "without"), ("from", "to"), ("my", "someone else's"), ("current", "parent")),
    *(("newest", "oldest"), ("ascending", "descending"), ("old", "new"), ("accept", "reject")),
)
_VERBS = ("is", "are", "was", "does", "do", "did", "has", "have", "can", "should", "will", "could")
_TOP_N = 16


@dataclass(frozen=True)
class Item:
    """A request with its right answer; ``kind`` is ``new``, ``repeat`` or ``trap``."""

    text: str
    answer: str
    kind: str = "new"


def banking77(folder: Path) -> list[Item]:
    """Questions to a bank; all of one category have the same answer."""
    items = []
    for part in ("train", "test"):
        with (folder / f"banking77_{part}.csv").open(encoding="utf-8") as file:
            items += [Item(row["text"], row["category"]) for row in csv.DictReader(file)]
    return items


def gsm8k(folder: Path) -> list[Item]:
    """Word problems; each has an answer of its own."""
    with (folder / "gsm8k_train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Item(row["question"], row["answer"]) for row in rows]


def nl2bash(folder: Path) -> list[Item]:
    """Tasks for a shell; the command is the answer."""
    with (
        (folder / "nl2bash.nl").open(encoding="utf-8") as tasks,
        (folder / "nl2bash.cm").open(encoding="utf-8") as commands,
    ):
        pairs = zip(tasks, commands, strict=True)
        # Of one task with several commands the first is what the LLM answers, as a greedy one does.
        return [Item(t.strip(), c.strip()) for t, c in pairs]


DATA: dict[str, Callable[[Path], list[Item]]] = {
    "banking77": banking77,
    "gsm8k": gsm8k,
    "nl2bash": nl2bash,
}


def trap(item: Item, rng: Random) -> Item | None:
    """The item changed a little, so that its answer is another one; None if that cannot be done."""
    ways = [_another_number, _opposite, _negation, _exchanged_words]
    for way in rng.sample(ways, len(ways)):
        text = way(item.text, rng)
        if text is not None and text != item.text:
            return Item(text, f"{item.answer} / {way.__name__} {text}", "trap")
    return None


def _another_number(text: str, rng: Random) -> str | None:
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    number = rng.choice(found)
    digits = re.sub(r"\D", "", number.group())
    return text[: number.start()] + str(int(digits) + rng.randint(1, 9)) + text[number.end() :]


def _opposite(text: str, rng: Random) -> str | None:
    pairs = [*_OPPOSITES, *((b, a) for a, b in _OPPOSITES)]
    usable = [(a, b) for a, b in pairs if re.search(rf"\b{a}\b", text)]
    if not usable:
        return None
    a, b = rng.choice(usable)
    return re.sub(rf"\b{a}\b", b, text, count=1)


def _negation(text: str, rng: Random) -> str | None:
    if " not " in text:
        return text.replace(" not ", " ", 1)
    usable = [verb for verb in _VERBS if f" {verb} " in text]
    if not usable:
        return None
    verb = rng.choice(usable)
    return text.replace(f" {verb} ", f" {verb} not ", 1)


def _exchanged_words(text: str, rng: Random) -> str | None:
    words = text.split()
    places = [k for k, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if len(places) < 2:
        return None
    i, j = rng.sample(places, 2)
    words[i], words[j] = words[j], words[i]
    return " ".join(words)


def stream(
    items: Sequence[Item], length: int, repeats: float, traps: float, rng: Random
) -> list[Item]:
    """Requests in random order, with shares of repeats and traps of earlier ones.

    A tenth of the repeats come with other blank space.
    """
    fresh = iter(rng.sample(list(items), len(items)))
    known: dict[str, str] = {}
    sent: list[Item] = []
    while len(sent) < length:
        draw, item = rng.random(), None
        if sent and draw < repeats:
            earlier = rng.choice(sent)
            text = f" {earlier.text}  " if rng.random() < 0.1 else earlier.text
            item = Item(text, earlier.answer, "repeat")
        elif sent and draw < repeats + traps:
            item = trap(rng.choice(sent), rng)
            item = None if item is None or normalised(item.text) in known else item
        if item is None:
            item = next(fresh, None)
            if item is None:
                break
        # What the same text was answered before is the right answer to it.
        answer = known.setdefault(normalised(item.text), item.answer)
        kind = item.kind if item.kind != "new" or answer == item.answer else "repeat"
        sent.append(Item(item.text, answer, kind))
    return sent


@dataclass
class Served:
    """What became of a request: the stored answer was found, given or checked, and was right."""

    kind: str
    known: bool
    similarity: float
    given: bool = False
    right: bool = False
    nearest_right: bool = False


def serve(
    sent: Sequence[Item],
    embeddings: NDArray[np.float32],
    error: float,
    strongest: float,
    rng: Random,
) -> list[Served]:
    """Serve a stream from an empty store.

    Args:
        embeddings: of the stream, FP32 [n, D].
        strongest: share of what the store does not answer that the strongest LLM answers; the rest
            teaches nothing and is not stored.
    """
    model = ReuseModel(error)
    stored: list[int] = []
    vectors = np.zeros_like(embeddings)
    texts: set[str] = set()
    served = []
    for n, item in enumerate(sent):
        cosines = vectors[: len(stored)] @ embeddings[n]
        nearest = np.argsort(-cosines, kind="stable")[:_TOP_N]
        candidates = [
            Candidate(k + 1, sent[k].text, sent[k].answer, "t", 1.0, float(cosines[row]), "key")
            for row in nearest.tolist()
            for k in [stored[row]]
        ]
        found = find_reusable(item.text, "key", candidates)
        result = Served(item.kind, normalised(item.text) in texts, -1.0)
        if candidates:
            result.similarity = candidates[0].similarity
            result.nearest_right = candidates[0].response == item.answer
        checked = False
        if found is not None:
            action = model.choose(found, rng.random()).action
            checked, result.given = action == "check", action == "give"
            result.right = found.response == item.answer
        served.append(result)
        if result.given or not (checked or rng.random() < strongest):
            continue
        if found is not None:
            _learn(model, found, item.answer, n)
        if not result.known:
            vectors[len(stored)] = embeddings[n]
            stored.append(n)
            texts.add(normalised(item.text))
    return served


def _learn(model: ReuseModel, found: Reusable, answer: str, n: int) -> None:
    same = found.response == answer
    compared = Comparison(found.id, found.exact, found.features, same, None if same else False)
    model.apply(Event(str(n), COMPARISON, describe([compared]), n))


@dataclass(frozen=True)
class Result:
    """Shares of a stream.

    Attributes:
        given, error: share of requests answered from the store, and of these wrong.
        repeats_given: share of the repeats of stored requests that were answered from the store.
        others_given, others_error: the same of all other requests.
        traps_given: traps answered from the store, all wrong but by chance.
        cache_given: share that a semantic cache answers whose threshold is the lowest, in
            hindsight, at which no more is wrong than ``cache_error``.
    """

    given: float
    error: float
    repeats_given: float
    others_given: float
    others_error: float
    traps_given: float
    cache_given: float
    cache_error: float


def summarise(served: Sequence[Served], error: float) -> Result:
    """The result of a stream."""
    given = [s for s in served if s.given]
    repeats = [s for s in served if s.kind == "repeat" and s.known]
    others = [s for s in served if not s.known]
    other_given = [s for s in others if s.given]
    traps = [s for s in served if s.kind == "trap" and not s.known]
    ranked = sorted(served, key=lambda s: -s.similarity)
    wrong = np.cumsum([not s.nearest_right for s in ranked])
    allowed = np.flatnonzero(wrong <= error * np.arange(1, len(ranked) + 1))
    hits = int(allowed[-1]) + 1 if allowed.size else 0

    def share(some: Sequence[Served], of: Sequence[Served]) -> float:
        return len(some) / max(1, len(of))

    return Result(
        share(given, served),
        share([s for s in given if not s.right], given),
        share([s for s in repeats if s.given], repeats),
        share(other_given, others),
        share([s for s in other_given if not s.right], other_given),
        share([s for s in traps if s.given], traps),
        hits / len(served),
        float(wrong[hits - 1] / hits) if hits else 0.0,
    )
