"""What the page of metrics says of models that are down."""

from __future__ import annotations

import pytest
from echolm.serving.frozen_gauges import _UNLABELLED, without_frozen
from echolm.telemetry import METRICS

PAGE = b"""\
# HELP echolm_llm_ready Whether
# TYPE echolm_llm_ready gauge
echolm_llm_ready{model="small_llm"} 1
echolm_llm_ready{model="large_llm"} 1
echolm_llm_ready{model="elsewhere"} 1
echolm_llm_in_flight{model="small_llm"} 3
echolm_llm_failed_total{model="small_llm"} 7
echolm_learning_log_up{model="retriever_0_1"} 1
echolm_learning_log_up{model="router"} 1
echolm_load{llm="small_llm",model="router"} 0.5
echolm_example_store_up 1
echolm_examples_stored 12
nv_inference_count{model="small_llm",version="1"} 9
"""
OWNERS = {"elsewhere": "remote_llm"}


def changed(*down: str) -> dict[bytes, bytes | None]:
    """Samples that are others without these models, by name and labels; None: left out."""
    after = dict(line.rsplit(b" ", 1) for line in without_frozen(PAGE, down, OWNERS).splitlines())
    before = dict(line.rsplit(b" ", 1) for line in PAGE.splitlines())
    return {key: after.get(key) for key, value in before.items() if after.get(key) != value}


def test_as_long_as_all_are_up_nothing_is_changed() -> None:
    assert without_frozen(PAGE, (), OWNERS) == PAGE


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            "small_llm",
            {
                b'echolm_llm_ready{model="small_llm"}': b"0",
                b'echolm_llm_in_flight{model="small_llm"}': None,
            },
        ),
        ("remote_llm", {b'echolm_llm_ready{model="elsewhere"}': b"0"}),
        ("retriever", {b'echolm_learning_log_up{model="retriever_0_1"}': b"0"}),
        (
            "router",
            {
                b'echolm_learning_log_up{model="router"}': b"0",
                b'echolm_load{llm="small_llm",model="router"}': None,
            },
        ),
        ("example_manager", {b"echolm_example_store_up": b"0", b"echolm_examples_stored": None}),
        ("feedback", {}),
    ],
)
def test_a_model_that_is_down_says_that_nothing_works(
    model: str, expected: dict[bytes, bytes | None]
) -> None:
    assert changed(model) == expected


def test_every_gauge_is_some_models() -> None:
    unlabelled = {
        spec.name
        for spec in METRICS.values()
        if spec.kind == "gauge" and "model" not in spec.labels
    }
    assert unlabelled - {"echolm_process_up"} == set(_UNLABELLED)
