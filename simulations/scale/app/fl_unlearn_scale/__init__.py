"""A Flower app with very many clients, each with a few pictures."""
