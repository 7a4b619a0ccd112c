"""Measurements of the library beside what one would use without it. ``--help`` says what each measures."""
