"""Measures of routers: APGR as RouteLLM has it, regret to the best fixed LLM, calibration."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from echolm_lab.tasks.routing_sets import RoutingSet

Vector = NDArray[np.float64]
_BINS = 10


def apgr(strong_shares: Vector, qualities: Vector, weak: float, strong: float) -> float:
    """Average performance gap recovered (RouteLLM, Ong et al. 2024, §3.2), 0.5 for a coin.

    The performance gap recovered is 0 at the weak LLM's quality and 1 at the strong one's; it is
    averaged over the share of requests that the strong LLM answers, by the trapezoid rule.

    Args:
        strong_shares: of each point of the curve, 0..1; their least and largest are its ends.
        qualities: mean score of each point.
        weak, strong: mean scores of the LLMs alone.
    """
    order = np.argsort(strong_shares, kind="stable")
    x, y = strong_shares[order], (qualities[order] - weak) / (strong - weak)
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))


def frozen_apgr(gains: Vector, weak: Vector, strong: Vector, points: int = 10) -> float:
    """APGR of a router that does not learn, as RouteLLM's ``evals`` compute it.

    Args:
        gains: what the router expects of the strong LLM over the weak one, or any number that
            ranks requests so, FP64 [n].
        weak, strong: scores of both LLMs' answers, FP64 [n] each.
        points: thresholds are the quantiles of ``gains`` that divide them into so many parts.
    """
    thresholds = np.quantile(gains, np.linspace(0.0, 1.0, points + 1))
    to_strong = gains >= thresholds[:, None]
    to_strong[-1] = gains > thresholds[-1]
    qualities = np.where(to_strong, strong, weak).mean(axis=1)
    return apgr(to_strong.mean(axis=1), qualities, float(weak.mean()), float(strong.mean()))


def calibration_error(predicted: Vector, scores: Vector) -> float:
    """Expected calibration error over 10 bins of equal width (Guo et al. 2017).

    Args:
        predicted: expected score of each answer, 0..1, FP64 [n].
        scores: FP64 [n].
    """
    bins = np.minimum((predicted * _BINS).astype(np.intp), _BINS - 1)
    differences = np.bincount(bins, weights=predicted - scores, minlength=_BINS)
    return float(np.abs(differences).sum() / len(scores))


def regret(data: RoutingSet, chosen: NDArray[np.intp], cost_weight: float) -> float:
    """What a request scores less than by the best fixed LLM, cost taken off; the mean of all.

    It is negative for a router that is better than any fixed LLM.

    Args:
        chosen: index of the LLM that answered each request.
    """
    best = (data.means - cost_weight * data.costs).max()
    return float(best - (data.scores_of(chosen) - cost_weight * data.costs[chosen]).mean())


def cost_weights(data: RoutingSet) -> list[float]:
    """Cost weights at each of which another LLM is the best fixed one, the cheapest LLM's last.

    Between two weights at which the best one changes it is their geometric mean; half of the first
    such weight before, and twice the last one behind. An LLM that is never the best gets none.
    """
    best, changes = int(np.argmax(data.means)), []
    while (cheaper := data.costs < data.costs[best]).any():
        # The weight from which on each cheaper LLM is better.
        weights = np.full(len(data.llms), np.inf)
        weights[cheaper] = (data.means[best] - data.means[cheaper]) / (
            data.costs[best] - data.costs[cheaper]
        )
        best = int(np.argmin(weights))
        changes.append(float(weights[best]))
    if not changes:
        return [0.0]
    pairs = itertools.pairwise(changes)
    return [changes[0] / 2, *(float(np.sqrt(a * b)) for a, b in pairs), changes[-1] * 2]
