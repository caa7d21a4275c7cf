"""Exit codes of every ``echolm`` command.

====  ==================================================================================
0     It did what it was told to.
1     It failed: the server or a part of it failed or cannot be reached, output cannot be
      written, an example does not exist, lines of an import were refused, a question was
      answered with no; or a check has found something to mend.
2     It cannot do what it was told to: a wrong command line, configuration, data
      directory or request.
130   It was interrupted (Ctrl-C).
====  ==================================================================================
"""

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

SUMMARY = (
    "Exit codes: 0 done; 1 failed, or a check has found something to mend; 2 wrong command line, "
    "configuration, data directory or request; 130 interrupted."
)
"""The table above in a sentence, for ``--help``."""
