"""Logged interactions become examples, by the same rules as live ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from echolm.clock import now_ms
from echolm.examples.admission import AdmissionPolicy
from echolm.examples.deduplication import DuplicateFinder, same_request
from echolm.examples.transfer import EmbedTexts, batched
from echolm.examples.writer import ExampleIds, WriterCounts, new_example, store_batch
from echolm.learning.event_log import EventLog
from echolm.learning.request_statistics import LEAST_SAMPLE, RequestStatistics, fit
from echolm.past_traffic.log import PastLog, Skips
from echolm.past_traffic.record import Logged
from echolm.past_traffic.state import PastTrafficState
from echolm.primitives import Candidate, Interaction
from echolm.settings import Settings
from echolm.store.base import ExampleStore, Query

Qualities = Callable[[Sequence[str], NDArray[np.float32]], dict[str, list[float]]]
"""Requests and embeddings, FP32 [n, D], to the quality expected of each LLM's answers."""

_BATCH = 256
_SEARCHED_AT_ONCE = 8  # a running server's requests wait for one search of Milvus Lite
_NEIGHBOURS = 8


@dataclass(frozen=True)
class PastExamples:
    """Screens, compares and stores batches of interactions."""

    settings: Settings
    store: ExampleStore
    log: EventLog
    admission: AdmissionPolicy
    embed: EmbedTexts
    qualities: Qualities
    duplicates: DuplicateFinder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "duplicates", DuplicateFinder(self.store))

    def store_log(self, log: PastLog, fingerprint: str, state: PastTrafficState) -> Iterator[int]:
        """Store what is not stored yet of a log; yields how many interactions more are done.

        Raises:
            UnavailableError: store or log cannot be written; what was done is kept.
        """
        ids = ExampleIds()
        done, earlier = state.stored(fingerprint)
        counts: Counter[str] = Counter(earlier)
        yield done
        for batch in batched(islice(log.read(Skips()), done, None), _BATCH):
            counts += self.take_in(batch, state.first_id(fingerprint, ids.next()))
            done += len(batch)
            state.batch_stored(fingerprint, done, counts)
            yield len(batch)

    def take_in(self, batch: Sequence[Logged], first_id: int) -> Counter[str]:
        """Store what is admitted and new; gives what became of the interactions.

        Args:
            first_id: the examples' ids count from this, and are the same if it is done again.

        Raises:
            UnavailableError: store or log cannot be written; it may be done again.
        """
        requests = [logged.request for logged in batch]
        embeddings = self.embed(requests)
        qualities = self.qualities(requests, embeddings)
        results: Counter[str] = Counter()
        admitted: list[tuple[int, Interaction]] = []
        for k, logged in enumerate(batch):
            interaction = Interaction(
                request=logged.request,
                response=logged.response,
                embedding=embeddings[k],
                tenant=logged.tenant,
                system_prompt=logged.system_prompt,
                llm=logged.llm,
                finish_reason="stop",
                quality=qualities[logged.llm][k],
            )
            result = self.admission.judge(interaction)
            if result.interaction is None:
                results[f"refused: {result.reason}"] += 1
            else:
                admitted.append((k, result.interaction))
        # The embedding of a text before redaction may give away what was redacted.
        changed = [i for i, (k, new) in enumerate(admitted) if new.request != batch[k].request]
        if changed:
            anew = self.embed([admitted[i][1].request for i in changed])
            for i, embedding in zip(changed, anew, strict=True):
                admitted[i] = (admitted[i][0], replace(admitted[i][1], embedding=embedding))
        entries = [
            (new_example(new, first_id + k, self.settings.examples), new.embedding)
            for k, new in admitted
        ]
        duplicates = self.duplicates if self.settings.examples.deduplicate else None
        if entries:
            counts = WriterCounts()
            counts.add(store_batch(entries, self.store, self.log, duplicates))
            results.update(
                {
                    "stored": counts.written,
                    "in place of a worse answer": counts.replaced,
                    "known already": counts.repeated,
                    "known with an answer no worse": counts.worse,
                }
            )
        return +results

    def redacted(self, logged: Logged) -> str:
        """The request as it would be stored."""
        blank = Interaction(
            logged.request,
            logged.response,
            np.zeros(1, np.float32),
            logged.tenant,
            logged.system_prompt,
            logged.llm,
            "stop",
            1.0,
        )
        result = self.admission.judge(blank)
        return logged.request if result.interaction is None else result.interaction.request

    def others(
        self, batch: Sequence[Logged], embeddings: NDArray[np.float32], top_n: int
    ) -> list[list[Candidate]]:
        """The nearest examples of each request, its own and those of the same request aside."""
        found: list[list[Candidate]] = []
        for start in range(0, len(batch), _SEARCHED_AT_ONCE):
            some = slice(start, start + _SEARCHED_AT_ONCE)
            queries = [Query.of(logged.tenant, logged.system_prompt) for logged in batch[some]]
            n = top_n + _NEIGHBOURS
            found += self.store.search(embeddings[some], queries, n, now_ms(), fresh=True)
        rows = []
        for logged, candidates in zip(batch, found, strict=True):
            own = {logged.request, self.redacted(logged)}
            kept = [c for c in candidates if not any(same_request(c.request, o) for o in own)]
            rows.append(kept[:top_n])
        return rows

    def measure(self, sample: Sequence[Logged], version: int) -> RequestStatistics | None:
        """Statistics of a sample of requests; None if there are too few, or all are equal."""
        if len(sample) < LEAST_SAMPLE:
            return None
        embeddings = self.embed([logged.request for logged in sample])
        neighbours = self.others(sample, embeddings, 1)
        nearest = np.array([row[0].similarity for row in neighbours if row], dtype=np.float32)
        try:
            return fit(embeddings, nearest, version)
        except ValueError:
            return None
