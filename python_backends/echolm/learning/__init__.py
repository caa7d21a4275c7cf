"""Ratings: the tokens that carry them, the log that keeps them, the models that learn."""
