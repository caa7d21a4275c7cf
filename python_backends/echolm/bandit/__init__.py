"""The contextual bandit: arms, Thompson sampling, context features, learning."""
