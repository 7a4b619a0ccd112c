"""A Flower app that compares ways to forget."""
