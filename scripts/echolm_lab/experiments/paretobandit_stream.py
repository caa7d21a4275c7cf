"""ParetoBandit's own router on streams of requests; a process of an interpreter that has it.

It is given a .npz with prompts, embeddings FP32 [n, D] (of the encoder that ParetoBandit uses
itself), scores FP64 [n, k], costs FP64 [k], cost_weights FP64 [w] and orders INT [seeds, n], and
writes the chosen LLMs, INT [seeds, w, n], to a .npy. Features are those of ParetoBandit, with the
principal components that it ships. Its penalty of an LLM is the cost weight times the logarithm of
the price on a scale of its own, so prices are given by which that is the set's cost.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pareto_bandit.config import BEST_K3_TABULA_RASA_HPARAMS, DEFAULT_PCA_PATH
from pareto_bandit.feature_service import FeatureService
from pareto_bandit.router import BanditRouter, RouterConfig


def main() -> None:
    given, target, priors = np.load(sys.argv[1]), sys.argv[2], sys.argv[3]
    logging.disable(logging.WARNING)
    encoded = dict(zip(given["prompts"].tolist(), given["embeddings"], strict=True))
    features = FeatureService(
        custom_encoder=encoded.__getitem__,
        embedding_dim=given["embeddings"].shape[1],
        pca_path=Path(DEFAULT_PCA_PATH),
    )
    x = features.extract_features_batch(given["prompts"].tolist())
    config = RouterConfig()
    scale = config.market_cost_ceiling / config.market_cost_floor
    prices = 1_000 * config.market_cost_floor * scale ** given["costs"]
    registry = {
        str(name): {"input_cost_per_m": float(price), "output_cost_per_m": float(price)}
        for name, price in zip(given["llms"].tolist(), prices, strict=True)
    }
    # Without priors it has settings of its own; with them they are the defaults.
    values: dict[str, Any] = {}
    if priors == "none":
        values = {key: BEST_K3_TABULA_RASA_HPARAMS[key] for key in ("alpha", "forgetting_factor")}
    names, scores = list(registry), given["scores"]
    orders, cost_weights = given["orders"], given["cost_weights"]
    chosen = np.zeros((len(orders), len(cost_weights), len(x)), dtype=np.int64)
    for seed, order in enumerate(orders):
        for w, cost_weight in enumerate(cost_weights.tolist()):
            router = BanditRouter.create(
                model_registry=registry,
                feature_service=features,
                priors=priors,
                cost_penalty=cost_weight,
                bandit_seed=seed,
                **values,
            )
            for k, row in enumerate(order):
                model, log = router.route(x[row])
                chosen[seed, w, k] = names.index(model)
                router.process_feedback(
                    log.request_id, reward=float(scores[row, chosen[seed, w, k]])
                )
    np.save(target, chosen)


if __name__ == "__main__":
    main()
