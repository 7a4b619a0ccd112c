"""Data sets for the scenarios."""
