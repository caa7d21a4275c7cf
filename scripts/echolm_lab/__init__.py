"""The laboratory: measures EchoLM against other policies. The commands in ``scripts/`` use it.

``tasks``        the workload: one module a domain, what generates, grades and corrupts beside it
``models``       the demo pair of LLMs: trained, evaluated, grown to real sizes, made worse
``report``       checks, tables, plots, and the figures that they need
``policies``     ways to answer a request, one module each
``experiments``  what is measured, and the bench that all experiments share

Imports run from the bottom of this list to its top. What trains the pair imports nothing of
``echolm``, so that an interpreter with torch and without EchoLM's dependencies can run it.
"""
