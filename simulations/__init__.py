"""Flower apps (a folder each) and the scripts that run them and make tables and pictures."""
