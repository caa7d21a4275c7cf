"""LinUCB, with which the router is compared."""

from __future__ import annotations

import numpy as np
from echolm_lab.policies.linucb import LinUCB


def test_each_context_gets_the_arm_that_was_better_there() -> None:
    bandit, rng = LinUCB(2, 2, 0.5, np.zeros(2)), np.random.default_rng(0)
    chosen = []
    for side in rng.choice([-1.0, 1.0], size=200):
        x = np.array([1.0, side])
        arm = bandit.choose(x)
        bandit.learn(arm, x, float(arm == (side > 0)))
        chosen.append(arm == (side > 0))
    assert np.mean(chosen[100:]) == 1.0


def test_an_arm_whose_cost_no_reward_is_worth_is_left_alone() -> None:
    bandit, x = LinUCB(2, 1, 0.5, np.array([0.0, 3.0])), np.ones(1)
    for _ in range(50):
        assert bandit.choose(x) == 0
        bandit.learn(0, x, 0.1)


def test_a_posterior_is_that_of_ridge_regression() -> None:
    rng = np.random.default_rng(1)
    X, rewards = rng.normal(size=(30, 3)), rng.random(30)
    bandit = LinUCB(2, 3, 0.0, np.zeros(2))
    for x, reward in zip(X, rewards, strict=True):
        bandit.learn(0, x, float(reward))
    weights = np.linalg.solve(X.T @ X + np.eye(3), X.T @ rewards)
    for x in rng.normal(size=(20, 3)):
        assert bandit.choose(x) == int(weights @ x < 0.0)
