"""The laboratory: measures EchoLM against other policies. The commands in ``scripts/`` use it.

``tasks``        the workload: one module a domain, what generates, grades and corrupts beside it
``models``       the demo pair of LLMs: trained, exported, grown to real sizes, made worse
``policies``     ways to answer a request, one module each
``report``       checks, tables, plots, and the figures that they need
``experiments``  what is measured, and the bench that all experiments share

Imports run from the bottom of this list to its top. ``tasks`` and what ``models`` needs to train
import nothing of ``echolm``, so that an interpreter that has only torch can run them.
"""
