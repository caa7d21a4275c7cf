"""A process of its own that admits, replaces and evicts examples, for tests that kill it.

writing_process.py DATA_DIR MILVUS_URI FIRST    admits for ever; prints what was acknowledged
writing_process.py DATA_DIR MILVUS_URI          writes what is left over and evicts, then ends
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from echolm.errors import UnavailableError
from echolm.examples.maintenance import Maintenance
from echolm.examples.statistics import StatisticsTable
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.examples.writer import ExampleWriter
from echolm.primitives import Interaction
from echolm.settings import ExamplesSettings, RetrievalSettings, Settings
from echolm.store.milvus import MilvusStore
from echolm.wiring.learning import open_event_log

DIMENSION = 8
LIMIT = 120
"""Examples that may be in the store."""


def settings(data_dir: Path) -> Settings:
    examples = ExamplesSettings(
        batch_size=16, flush_interval_s=0.01, max_stored=LIMIT, maintenance_interval_s=0.05
    )
    return Settings(data_dir=data_dir, examples=examples)


def retrieval(uri: str) -> RetrievalSettings:
    # FLAT: with few rows an index of clusters is only a way to miss some.
    return RetrievalSettings(milvus_uri=uri, index_type="FLAT", index_params={}, search_params={})


def interaction(number: int) -> Interaction:
    """The n-th interaction: every fourth answers an earlier request, half of these better."""
    about = number - 3 if number % 4 == 3 else number
    better = number % 8 == 7
    vector = np.random.default_rng(about).standard_normal(DIMENSION).astype(np.float32)
    return Interaction(
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
    write_ahead_log = WriteAheadLog(chosen.write_ahead_log_path, chosen.examples.max_pending)
    statistics = StatisticsTable(chosen.statistics_path, chosen.relative_costs)
    writer = ExampleWriter(store, write_ahead_log, log, chosen.examples, retry_s=0.1)
    # The lease of one that was killed is over soon, and tests do not wait for it.
    keeper = Maintenance(store, statistics, log, chosen.examples, "the only one")
    if len(sys.argv) == 3:
        while writer.pending:
            time.sleep(0.05)
        writer.close()
        keeper.run()
        return 0
    number = int(sys.argv[3])
    while True:
        batch = [interaction(number + k) for k in range(5)]
        if all(id is not None for id in writer.put(batch)):
            print("\n".join(str(number + k) for k in range(5)), flush=True)
            number += 5
        try:
            keeper.run()
        except UnavailableError:
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
