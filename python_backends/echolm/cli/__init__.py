"""The command ``echolm``, one file a verb."""
