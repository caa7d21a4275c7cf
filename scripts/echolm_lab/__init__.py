"""Measures policies against each other on a live server: load, quality, report."""
