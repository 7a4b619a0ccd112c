"""Fuzzing of what comes from outside: ``python -m simulations.fuzz TARGET --examples 100000 --seed 0``."""
