"""What the retriever has found, as bytes: on the way to the router in the ``selection`` ensemble.

The embedding travels beside it, since the embedder makes it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import orjson

from echolm.primitives import Retrieved, Reusable, Selected


def pack(retrieved: Retrieved) -> bytes:
    """Everything but the embedding."""
    found = retrieved.reusable
    return orjson.dumps(
        [
            [list(vars(example).values()) for example in retrieved.examples],
            retrieved.help_probability,
            retrieved.selection,
            retrieved.degraded,
            None if found is None else list(vars(found).values()),
        ],
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def unpack(packed: bytes | str) -> Retrieved:
    """The same, without an embedding; ValueError if it is nothing that was packed here."""
    try:
        examples, help_probability, selection, degraded, found = orjson.loads(packed)
        reusable = None if found is None else Reusable(*found)
        if reusable is not None:
            features = np.array(reusable.features, dtype=np.float32)
            reusable = dataclasses.replace(reusable, features=features)
        return Retrieved(
            None,
            tuple(Selected(*example) for example in examples),
            help_probability,
            selection,
            degraded,
            reusable,
        )
    except TypeError as error:
        raise ValueError(f"expected what a retriever has packed: {error}") from error
