"""The stages of ``scripts/bench_gpu.py``; each takes that command's options.

A stage leaves its result in ``options.work`` and goes on where it was cut.
"""
