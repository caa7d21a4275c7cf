"""The command ``echolm``, one file a verb.

A verb's file has ``add_subcommand``, which describes its arguments, and ``run``, which does the
work and returns one of :mod:`echolm_client.cli.exit_codes`. It imports what only the work needs
in ``run``, so that other verbs start without it. The verbs that talk to a running server come
from :mod:`echolm_client.cli`.
"""
