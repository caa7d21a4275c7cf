"""What the retriever has found comes through as it was."""

from __future__ import annotations

import numpy as np
import pytest
from echolm.primitives import Retrieved, Reusable, Selected
from echolm.retrieval.packed import pack, unpack

FOUND = Retrieved(
    None,
    (
        Selected(2**63 - 1, "a request\x00 \N{SNOWMAN}", 'an "answer"\n', 0.9, 0.8, -0.5),
        Selected(0, "", "", float(np.float32(0.1)), 0.0),
    ),
    0.25,
    "a record",
    "example store unavailable",
    Reusable(7, "an answer", True, np.array([0.5, 1.0, -2.0], np.float32)),
)


def test_what_is_unpacked_is_what_was_packed() -> None:
    found = unpack(pack(FOUND))
    assert found.examples == FOUND.examples
    assert (found.help_probability, found.selection, found.degraded) == (
        0.25,
        "a record",
        "example store unavailable",
    )
    assert found.reusable is not None and FOUND.reusable is not None
    assert found.reusable.features.dtype == np.float32
    assert found.reusable.features.tolist() == FOUND.reusable.features.tolist()
    assert (found.reusable.id, found.reusable.response, found.reusable.exact) == (
        7,
        "an answer",
        True,
    )


def test_nothing_is_packed_as_nothing() -> None:
    assert unpack(pack(Retrieved())) == Retrieved()


@pytest.mark.parametrize("packed", [b"", b"[]", b"null", b"[1,2,3,4,5]", b"[[[1]],0,0,0,null]"])
def test_other_bytes_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        unpack(packed)
