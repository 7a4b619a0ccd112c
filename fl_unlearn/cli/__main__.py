"""``python -m fl_unlearn.cli``: the same as ``fl-unlearn``."""

from fl_unlearn.cli.app import main

main()
