from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from echolm.learning.snapshot import fingerprint, pack, unpack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

FINITE: Any = {"allow_nan": False, "allow_infinity": False}
ARRAYS = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    elements=FINITE,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(**FINITE) | st.text() | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_state_comes_back_bit_by_bit(state: dict[str, Any]) -> None:
    assert same(state, unpack(pack(state)))


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": np.array([None])}, {"a": {1}}])
def test_what_cannot_come_back_is_refused(value: dict[Any, Any]) -> None:
    with pytest.raises(TypeError):
        pack(value)


def test_what_is_no_state_is_refused() -> None:
    data = pack({"a": np.arange(1_000), "b": "text"})
    for damaged in (b"", b"x", data[:-30], data[: len(data) // 2], b"\0" * len(data)):
        with pytest.raises(ValueError, match="damaged"):
            unpack(damaged)


@pytest.mark.parametrize(
    "state",
    [{"a": math.nan}, {"a": [{"b": -math.inf}]}, {"a": np.array([1.0, math.nan], np.float32)}],
)
def test_a_state_with_a_number_that_is_not_finite_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="finite"):
        unpack(pack(state))


def test_no_flipped_bit_goes_unnoticed_or_escapes_as_another_error() -> None:
    state = {"a": np.arange(5), "b": {"c": [1.5, "text"]}}
    data = pack(state)
    refused = 0
    for i in range(len(data)):
        try:
            # Some bits of a zip file mean nothing.
            assert same(state, unpack(data[:i] + bytes([data[i] ^ 0x11]) + data[i + 1 :]))
        except ValueError:
            refused += 1
    assert refused > len(data) / 2


def test_a_fingerprint_tells_configurations_apart() -> None:
    base = {"d": 4, "names": ["a", "b"], "prior": np.array([0.1, 0.2])}
    others = [
        {**base, "d": 5},
        {**base, "names": ["b", "a"]},
        {**base, "prior": np.array([0.1, np.nextafter(0.2, 1)])},
        {**base, "prior": np.array([[0.1, 0.2]])},
        {**base, "prior": np.array([0.1, 0.2], dtype=np.float32)},
    ]
    assert len({fingerprint(one) for one in (base, *others)}) == 6
    again = {"prior": np.array([0.1, 0.2]), "names": ["a", "b"], "d": 4}
    assert fingerprint(again) == fingerprint(base)
    with pytest.raises(TypeError):
        fingerprint({"a": object()})
