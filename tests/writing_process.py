"""A process of its own that admits, replaces and evicts examples, for tests that kill it.

writing_process.py DATA_DIR MILVUS_URI FIRST    admits for ever; prints what was acknowledged
writing_process.py DATA_DIR MILVUS_URI          writes what is left over and tidies up, then ends
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from echolm.errors import UnavailableError
from echolm.examples.housekeeping import Housekeeper
from echolm.examples.journal import WriteJournal
from echolm.examples.ledger import ExampleLedger
from echolm.examples.writer import ExampleWriter
from echolm.learning.event_log import open_event_log
from echolm.retrieval.milvus import MilvusStore
from echolm.routing.service import Exchange
from echolm.settings import ExamplesSettings, RetrievalSettings, Settings

DIMENSION = 8
LIMIT = 120
"""Examples that may be in the store."""


def settings(data_dir: Path) -> Settings:
    examples = ExamplesSettings(
        batch_size=16, flush_interval_s=0.01, max_examples=LIMIT, tidy_interval_s=0.05
    )
    return Settings(data_dir=data_dir, examples=examples)


def retrieval(uri: str) -> RetrievalSettings:
    # FLAT: with few rows an index of clusters is only a way to miss some.
    return RetrievalSettings(milvus_uri=uri, index_type="FLAT", index_params={}, search_params={})


def exchange(number: int) -> Exchange:
    """The n-th exchange: every fourth answers an earlier request, half of these better."""
    about = number - 3 if number % 4 == 3 else number
    better = number % 8 == 7
    vector = np.random.default_rng(about).standard_normal(DIMENSION).astype(np.float32)
    return Exchange(
        f"request {about}",
        f"answer {number if better else about}",
        vector / np.linalg.norm(vector),
        "t",
        "",
        "large_llm",
        "stop",
        0.9 if better else 0.5,
    )


def main() -> int:
    data_dir, uri = Path(sys.argv[1]), sys.argv[2]
    chosen = settings(data_dir)
    store = MilvusStore(retrieval(uri), "fake", DIMENSION)
    log = open_event_log(chosen)
    journal = WriteJournal(chosen.journal_path, chosen.examples.max_pending)
    ledger = ExampleLedger(chosen.ledger_path, chosen.relative_costs)
    writer = ExampleWriter(store, journal, log, chosen.examples, retry_s=0.1)
    # The lease of one that was killed is over soon, and tests do not wait for it.
    keeper = Housekeeper(store, ledger, log, chosen.examples, "the only one")
    if len(sys.argv) == 3:
        while writer.pending:
            time.sleep(0.05)
        writer.close()
        keeper.tidy()
        return 0
    number = int(sys.argv[3])
    while True:
        batch = [exchange(number + k) for k in range(5)]
        if all(id is not None for id in writer.put(batch)):
            print("\n".join(str(number + k) for k in range(5)), flush=True)
            number += 5
        try:
            keeper.tidy()
        except UnavailableError:
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
