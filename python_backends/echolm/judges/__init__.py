"""Automatic feedback: a sampled share of answers is judged, and the router learns from it."""
