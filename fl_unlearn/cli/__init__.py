"""The command line, ``fl-unlearn``: look at the store of a run, check it, tidy it up.

It needs no running Flower, and a command loads torch only when it opens a store.
"""

from fl_unlearn.cli.app import app, main

__all__ = ["app", "main"]
