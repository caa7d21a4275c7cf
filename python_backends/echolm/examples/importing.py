"""Takes in examples from a file, by the rules for live interactions; each line by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from echolm.clock import now_ms
from echolm.examples.admission import AdmissionPolicy
from echolm.examples.deduplication import (
    DuplicateFinder,
    Finding,
    RequestIndex,
    compare,
    same_request,
)
from echolm.examples.pairs import Pair
from echolm.examples.transfer import EmbedTexts
from echolm.examples.writer import ExampleIds, new_example, store_batch
from echolm.learning.event_log import EventLog
from echolm.primitives import Interaction
from echolm.settings import Settings
from echolm.store.base import Example, ExampleStore, Stored

_NO_EMBEDDING = np.zeros(0, np.float32)

REFUSALS: Mapping[str, str] = {
    "empty": "an answer of at least examples.min_response_chars characters",
    "too_long": "at most examples.max_interaction_chars characters, and no text of more bytes than "
    "the store takes",
    "quality": "a quality of at least examples.min_quality",
    "secret": "no key, token or password in it (examples.secrets)",
    "injection": "no instructions to ignore instructions in it (examples.injections)",
    "personal_data": "no personal data in it (examples.personal_data)",
}
"""What was expected where the admission of examples refuses, by its reason."""


class Outcome(Enum):
    """What became of a line."""

    NEW = "new"
    REPLACED = "replaced"  # it is in, in place of an example of the same request
    KNOWN = "known"  # request and answer were there
    NO_BETTER = "no better"  # the request was there, with an answer that is no worse
    REFUSED = "refused"


_OUTCOMES = {
    Finding.NEW: Outcome.NEW,
    Finding.BETTER: Outcome.REPLACED,
    Finding.REPEATED: Outcome.KNOWN,
    Finding.CONFIRMED: Outcome.KNOWN,
    Finding.WORSE: Outcome.NO_BETTER,
}


@dataclass(frozen=True)
class Line:
    """An example that a line of the file holds.

    Attributes:
        number: of the line, from 1.
        example: its id is 0 where it has none yet.
        embedding: FP32 [D]; None: it is made here.
    """

    number: int
    example: Example
    embedding: NDArray[np.float32] | None = None


def line_of_pair(number: int, pair: Pair, settings: Settings) -> Line:
    """The example that a pair becomes: as an answer of the LLM that others are compared with."""
    interaction = Interaction(
        request=pair.request,
        response=pair.response,
        embedding=_NO_EMBEDDING,
        tenant=pair.tenant,
        system_prompt=pair.system_prompt,
        llm=settings.reference_llm.name,
        finish_reason="stop",
        quality=pair.quality,
    )
    return Line(number, new_example(interaction, 0, settings.examples))


OnRefused = Callable[[int, str], None]
"""Called with a refused line's number, and what was expected and what came."""


@dataclass
class ImportCounts:
    """What became of all lines.

    Attributes:
        refusals: refused lines by reason.
    """

    on_refused: OnRefused = lambda line, message: None
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    def refuse(self, line: int, reason: str, message: str) -> None:
        """Count a line that cannot be taken in.

        Args:
            reason: a word or two, by which such lines are counted.
        """
        self.outcomes[Outcome.REFUSED] += 1
        self.refusals[reason] += 1
        self.on_refused(line, message)


@dataclass
class Importer:
    """Takes lines into the store.

    An id that another example has already, of another tenant, scope or request, is no reason to
    replace that: the line's example gets a new one.

    Attributes:
        embed: None: nothing is embedded or written, as in a dry run.
        index: what is stored; None: requests may be stored twice.
    """

    store: ExampleStore
    log: EventLog
    admission: AdmissionPolicy
    embed: EmbedTexts | None
    index: RequestIndex | None
    counts: ImportCounts = field(default_factory=ImportCounts)
    _ids: ExampleIds = field(default_factory=ExampleIds, init=False)
    _dry: dict[int, Example] = field(default_factory=dict, init=False)  # what would be in, by id

    def take_in(self, lines: Sequence[Line]) -> None:
        """Take in some lines; those after them find what these have stored.

        Raises:
            UnavailableError: store or log cannot be written; it may be done again.
        """
        admitted = [line for line in map(self._admitted, lines) if line is not None]
        placed = self._with_ids(admitted)
        if not placed:
            return
        if self.embed is None:
            self._pretend(placed)
            return
        missing = [k for k, (line, _) in enumerate(placed) if line.embedding is None]
        made = self.embed([placed[k][0].example.request for k in missing]) if missing else ()
        embeddings = dict(zip(missing, made, strict=True))
        batch: list[Stored] = []
        for k, (line, _) in enumerate(placed):
            vector = embeddings[k] if line.embedding is None else line.embedding
            batch.append((line.example, vector))
        finder = None if self.index is None else DuplicateFinder(self.store, self.index)
        compared = store_batch(batch, self.store, self.log, finder)
        stored = []
        for (line, overwrites), comparison in zip(placed, compared, strict=True):
            outcome = _OUTCOMES[comparison.finding]
            if outcome in (Outcome.NEW, Outcome.REPLACED):
                stored.append(line.example)
                outcome = Outcome.REPLACED if overwrites else outcome
            self.counts.outcomes[outcome] += 1
        if self.index is not None:
            self.index.add(stored)

    def _admitted(self, line: Line) -> Line | None:
        """The line as it may be stored; None where it is refused."""
        example = line.example
        if example.expires_at_ms <= now_ms():
            self.counts.refuse(line.number, "expired", "expected an example that has not expired")
            return None
        screened = self.admission.screened(example.request, example.response, example.quality)
        if screened.reason:
            expected = REFUSALS.get(screened.reason, "what may become an example")
            self.counts.refuse(
                line.number, screened.reason, f"{screened.reason}: expected {expected}"
            )
            return None
        if (screened.request, screened.response) == (example.request, example.response):
            return line
        # What was redacted is nobody's answer any more, and its embedding may give it away.
        embedding = line.embedding if screened.request == example.request else None
        redacted = replace(
            example, request=screened.request, response=screened.response, answer_keys=""
        )
        return Line(line.number, redacted, embedding)

    def _with_ids(self, lines: Sequence[Line]) -> list[tuple[Line, bool]]:
        """The lines with ids that are theirs, and whether each overwrites an example.

        Lines whose example is stored already, to the letter, are counted here.
        """
        wanted = [line.example.id for line in lines if line.example.id]
        taken = {example.id: example for example, _ in self.store.get(wanted)} | self._dry
        first_new = self._ids.next()  # ids of one batch count up, so that none is drawn twice
        placed: list[tuple[Line, bool]] = []
        used: set[int] = set()
        for k, line in enumerate(lines):
            example = line.example
            other = taken.get(example.id)
            overwrites = other is not None and _same_place(example, other)
            if overwrites and other is not None and other.response == example.response:
                self.counts.outcomes[Outcome.KNOWN] += 1
                continue
            if not example.id or example.id in used or (other is not None and not overwrites):
                example, overwrites = replace(example, id=first_new + k), False
            used.add(example.id)
            placed.append((replace(line, example=example), overwrites))
        return placed

    def _pretend(self, placed: Sequence[tuple[Line, bool]]) -> None:
        """Count what would become of lines."""
        examples = [line.example for line, _ in placed]
        index = self.index or RequestIndex()
        ids = [id for example in examples if (id := index.find(example)) is not None]
        stored = {example.id: example for example, _ in self.store.get(ids)} | self._dry
        for example, (_, overwrites) in zip(examples, placed, strict=True):
            other = stored.get(index.find(example) or 0)
            known = [] if other is None or other.id == example.id else [other]
            outcome = _OUTCOMES[compare(example, known).finding]
            if outcome in (Outcome.NEW, Outcome.REPLACED):
                self._dry[example.id] = stored[example.id] = example
                if self.index is not None:
                    self.index.add([example])
            self.counts.outcomes[Outcome.REPLACED if overwrites else outcome] += 1


def _same_place(example: Example, other: Example) -> bool:
    """Whether they are the same request of the same tenant under the same system prompt."""
    return (example.tenant, example.scope) == (other.tenant, other.scope) and same_request(
        example.request, other.request
    )
