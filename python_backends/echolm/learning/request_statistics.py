"""What the requests of this service look like to its embedding model, learnt from a sample.

Cosines mean different things to different embedding models and workloads: where requests of one
intent lie at 0.98 for one service, they lie at 0.65 for another. And of the hundreds of dimensions
of an embedding only a few tell this service's requests apart. So both are measured: quantiles of
cosines, and the principal components of the requests' embeddings. The measurement is an event in
the learning log, so that all processes see requests alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

REQUEST_STATISTICS = "request_statistics"
"""Kind of an event whose body is :meth:`RequestStatistics.body`'s."""

NUM_COMPONENTS = 16
"""Principal components that are kept: with 32, ratings by the hundred are fitted no better."""
LEAST_SAMPLE = 64
"""Requests from which on statistics are made."""

_LEAST_DIFFERENT = 32  # requests from which on it is told how near unrelated ones are
_SAME = 0.999  # cosine from which two requests are the same one again
_PAIRS = 20_000  # random pairs of requests whose cosines are measured
_LEAST_NEAREST = 32  # requests with candidates from which on their cosines are measured
# What is assumed before anything was measured.
_UNRELATED, _NEAREST, _LOG_LENGTHS = (0.25, 0.45, 0.6), (0.6, 0.75, 0.9), (2.5, 5.0, 7.5)
_DECILES = (0.1, 0.5, 0.9)

Quantiles = tuple[float, float, float]
_QUANTILES = ("unrelated", "nearest", "log_lengths")


@dataclass(frozen=True)
class RequestStatistics:
    """Statistics of a sample of requests.

    Attributes:
        version: grows with each measurement; 0 before the first.
        count: requests in the sample.
        mean: mean embedding, FP32 [D]; D is 0 before the first measurement.
        components: principal components, orthonormal rows, FP32 [k, D].
        scale: standard deviation of the sample along the first component.
        unrelated: cosines of random pairs of requests, at 50, 95 and 99%.
        nearest: cosines of a request and the most similar example, at 10, 50 and 90%.
        log_lengths: log(1 + characters) of a request, at 10, 50 and 90%.
    """

    version: int
    count: int
    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    scale: float
    unrelated: Quantiles
    nearest: Quantiles
    log_lengths: Quantiles

    @classmethod
    def none(cls) -> RequestStatistics:
        """What is assumed before the first measurement; there are no components."""
        empty = np.zeros((0, 0), dtype=np.float32)
        return cls(0, 0, empty.reshape(0), empty, 1.0, _UNRELATED, _NEAREST, _LOG_LENGTHS)

    def project(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Requests along the principal components, FP32 [n, k]; the first has deviation 1.

        Args:
            embeddings: FP32 [n, D].
        """
        projected = (embeddings - self.mean) @ self.components.T / self.scale
        return np.asarray(projected, dtype=np.float32)

    def body(self) -> dict[str, Any]:
        """The statistics as JSON values, for the learning log."""
        arrays = {
            name: np.round(getattr(self, name).astype(np.float64), 5).tolist()
            for name in ("mean", "components")
        }
        return {**vars(self), **arrays}

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> RequestStatistics:
        """What :meth:`body` made JSON of; ValueError or KeyError if it is damaged."""
        mean = np.asarray(body["mean"], dtype=np.float32)
        components = np.asarray(body["components"], dtype=np.float32)
        scale = float(body["scale"])
        quantiles = [tuple(map(float, body[name])) for name in _QUANTILES]
        numbers = np.concatenate([mean.ravel(), components.ravel(), [scale], *quantiles])
        if components.ndim != 2 or components.shape[1:] != mean.shape or not len(mean):
            raise ValueError(f"components: expected [k, {mean.shape}], got {components.shape}")
        if not np.isfinite(numbers).all() or scale <= 0 or any(len(q) != 3 for q in quantiles):
            raise ValueError("request statistics: expected finite numbers")
        version, count = int(body["version"]), int(body["count"])
        return cls(version, count, mean, components, scale, *quantiles)  # type: ignore[arg-type]


def fit(
    embeddings: NDArray[np.float32],
    nearest: NDArray[np.float32],
    version: int,
    k: int = NUM_COMPONENTS,
    lengths: NDArray[np.float32] | None = None,
) -> RequestStatistics:
    """The statistics of a sample of at least two different requests.

    Args:
        embeddings: FP32 [n, D], unit length.
        nearest: cosines of requests and their most similar examples, of any number of requests.
        version: the new measurement's.
        k: principal components to keep; fewer are kept of a small sample.
        lengths: characters of the requests, FP32 [n]; None: not known.

    Raises:
        ValueError: all requests are equal.
    """
    n = len(embeddings)
    mean = embeddings.mean(axis=0)
    _, deviations, components = np.linalg.svd(embeddings - mean, full_matrices=False)
    scale = float(deviations[0]) / max(n - 1, 1) ** 0.5
    if scale < 1e-4:
        raise ValueError("request statistics: expected different requests, got equal ones")
    # Components along which the sample does not vary have no direction of their own.
    kept = components[: min(k, int((deviations > 1e-4 * deviations[0]).sum()))]
    near = _NEAREST if len(nearest) < _LEAST_NEAREST else _quantiles(nearest, _DECILES)
    log_lengths = _LOG_LENGTHS if lengths is None else _quantiles(np.log1p(lengths), _DECILES)
    return RequestStatistics(
        version, n, mean, kept, scale, _unrelated(embeddings), near, log_lengths
    )


def _unrelated(embeddings: NDArray[np.float32]) -> Quantiles:
    """How near unrelated requests are.

    What is sent again and again, by a monitor or a load generator, counts once: that it is near
    itself says nothing of other requests.
    """
    again = np.triu(embeddings @ embeddings.T >= _SAME, 1).any(axis=0)
    different = embeddings[~again]
    n = len(different)
    if n < _LEAST_DIFFERENT:
        return _UNRELATED
    # The same sample gives the same pairs; of which requests they are does not matter.
    pairs = np.random.default_rng(n).integers(n, size=(2, _PAIRS))
    first, second = different[pairs[:, pairs[0] != pairs[1]]]
    return _quantiles(np.einsum("nd,nd->n", first, second), (0.5, 0.95, 0.99))


def _quantiles(values: NDArray[np.float32], at: Quantiles) -> Quantiles:
    low, middle, high = (round(float(v), 5) for v in np.quantile(values, at))
    return low, middle, high
