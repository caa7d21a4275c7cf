"""Tests of echolm.embedding."""
