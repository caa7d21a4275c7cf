"""What a loaded embedding model is to the rest, whatever library runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from echolm.errors import ConfigurationError

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

CPU_CALL_TOKENS = 32
"""Of 8 to 64 tokens, 32 was the least with which mixed batches of 32 texts took least CPU time, in
both runtimes."""

_WARM_ROWS, _WARM_TOKENS = 12, 48

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedding"


class Session(Protocol):
    """A loaded model; ``run`` may be called from several threads.

    Attributes:
        call_tokens: what one more call costs, in tokens that a batch could have padded instead.
        precision: of the matrix products, as they really are: ``fp32``, ``bf16`` or ``int8``.
    """

    call_tokens: int
    precision: str

    def run(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        """``[n, seq]`` twice to ``[n, D]``."""

    def warm_up(self) -> None:
        """Prepare for the shapes of usual batches, which else takes time under load."""


def run_usual_shapes(session: Session) -> None:
    """Run batches of short texts, for libraries that prepare themselves for each shape."""
    for tokens in range(8, _WARM_TOKENS + 1, 8):
        for rows in range(1, _WARM_ROWS + 1):
            ids = np.zeros((rows, tokens), dtype=np.int64)
            session.run(ids, np.ones_like(ids))


def check_names(model: Path, inputs: set[str], outputs: set[str]) -> None:
    """Raise ConfigurationError unless a model has the tensors of an embedder."""
    if inputs != set(INPUTS) or OUTPUT not in outputs:
        raise ConfigurationError(
            f"embedder: {model}: expected inputs {sorted(INPUTS)} and output {OUTPUT!r}, got "
            f"inputs {sorted(inputs)} and outputs {sorted(outputs)}; pooling and normalisation "
            "belong inside the graph"
        )
