"""A project on Flower's legacy API, run by `flwr run` in tests."""
