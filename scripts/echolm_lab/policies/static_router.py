"""A router trained once, offline, as RouteLLM does it.

A logistic classifier on the request's embedding predicts whether the small LLM alone answers as
well as the large one. It gets no examples, no load, and no ratings after its training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from echolm import contracts
from echolm.errors import InvalidRequestError
from numpy.typing import NDArray

from echolm_lab.policies.base import AnswerPolicy, Reply
from echolm_lab.tasks import Item

_STEPS = 50
_SAME = 1e-6


class StaticRouter:
    """Logistic regression with an L2 penalty, fitted by Newton's method.

    Args:
        penalty: weight of the squared norm; the intercept is free.
    """

    def __init__(self, penalty: float = 1.0) -> None:
        self._penalty = penalty
        self._weights: NDArray[np.float64] | None = None

    def fit(self, embeddings: NDArray[np.float32], good: Sequence[bool]) -> None:
        """Learn from labelled requests.

        Args:
            embeddings: FP32 [n, D].
            good: whether the small LLM alone answers each of them well.
        """
        x = _with_intercept(embeddings)
        y = np.asarray(good, dtype=np.float64)
        if len(x) != len(y) or len(y) == 0:
            raise InvalidRequestError.of("labels", f"one for each of {len(x)} requests", len(y))
        penalty = np.full(x.shape[1], self._penalty)
        penalty[-1] = 1e-6  # keeps the Hessian regular where all labels are the same
        w = np.zeros(x.shape[1])
        for _ in range(_STEPS):
            p = _sigmoid(x @ w)
            gradient = x.T @ (p - y) + penalty * w
            hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
            step = np.linalg.solve(hessian, gradient)
            w -= np.clip(step, -5.0, 5.0)
            if np.abs(step).max() < 1e-8:
                break
        self._weights = w

    def predict(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """P(the small LLM answers well), FP64 [n]."""
        if self._weights is None:
            raise InvalidRequestError.of("static router", "a fitted one", "none")
        return _sigmoid(_with_intercept(embeddings) @ self._weights)


def calibrate(
    predicted: NDArray[np.float64],
    small_scores: Sequence[float],
    large_scores: Sequence[float],
    least_win_rate: float,
) -> float:
    """The lowest threshold, so the most offloading, at which quality holds on these requests.

    1.01, under which nothing is offloaded, if there is none.
    """
    small, large = np.asarray(small_scores), np.asarray(large_scores)
    for threshold in np.unique(np.round(predicted, 3)):
        mixed = np.where(predicted >= threshold, small, large)
        difference = mixed - large
        wins, losses = np.mean(difference > _SAME), np.mean(difference < -_SAME)
        if 0.5 + 0.5 * (wins - losses) >= least_win_rate:
            return float(threshold)
    return 1.01


async def embedding(grpc: grpc_aio.InferenceServerClient, text: str) -> NDArray[np.float32]:
    """A text's embedding FP32 [D] from the running server."""
    tensor = grpc_aio.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode("utf-8")]], dtype=np.object_))
    result = await grpc.infer(contracts.TEXT_EMBEDDING.name, [tensor])
    return np.array(result.as_numpy("embedding")[0], dtype=np.float32)


class StaticRouting:
    """A classifier trained offline chooses between both LLMs, neither with examples.

    Args:
        router: the classifier, fitted.
        threshold: least P(the small LLM answers well) for which it gets the request.
    """

    name = "static_router"

    def __init__(
        self,
        grpc: grpc_aio.InferenceServerClient,
        router: StaticRouter,
        threshold: float,
        small: AnswerPolicy,
        large: AnswerPolicy,
    ) -> None:
        self._grpc = grpc
        self._router = router
        self._threshold = threshold
        self._small = small
        self._large = large

    async def send(self, item: Item) -> Reply:
        vector = await embedding(self._grpc, item.text)
        good = float(self._router.predict(vector[None])[0])
        return await (self._small if good >= self._threshold else self._large).send(item)


def _with_intercept(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    x = np.asarray(embeddings, dtype=np.float64)
    return np.hstack([x, np.ones((len(x), 1))])


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -500, 500))))
