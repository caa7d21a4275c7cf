from __future__ import annotations

import numpy as np
import pytest
from echolm.errors import InvalidRequestError
from echolm_lab.policies.static_router import StaticRouter, calibrate


def test_it_tells_separable_requests_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8)).astype(np.float32)
    good = x[:, 0] + 0.5 * x[:, 1] > 0.3
    router = StaticRouter(penalty=0.1)
    router.fit(x[:300], good[:300].tolist())
    assert ((router.predict(x[300:]) > 0.5) == good[300:]).mean() > 0.9


def test_without_signal_it_predicts_the_share() -> None:
    x = np.zeros((100, 4), dtype=np.float32)
    router = StaticRouter()
    router.fit(x, [True] * 30 + [False] * 70)
    assert router.predict(x[:1])[0] == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_kind_are_no_obstacle(label: bool) -> None:
    x = np.eye(4, dtype=np.float32)
    router = StaticRouter()
    router.fit(x, [label] * 4)
    assert ((router.predict(x) > 0.5) == label).all()


def test_an_unfitted_router_and_missing_labels_are_refused() -> None:
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(InvalidRequestError, match="fitted"):
        StaticRouter().predict(x)
    with pytest.raises(InvalidRequestError, match="labels"):
        StaticRouter().fit(x, [True])


def test_calibration_offloads_as_much_as_quality_allows() -> None:
    predicted = np.array([0.1, 0.3, 0.6, 0.9])
    small, large = [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    assert calibrate(predicted, small, large, 0.495) == pytest.approx(0.6)
    assert calibrate(predicted, small, large, 0.0) == pytest.approx(0.1)
    assert calibrate(predicted, [0.0] * 4, large, 0.495) > 1.0
