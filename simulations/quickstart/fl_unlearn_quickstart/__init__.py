"""A small Flower app that trains a classifier over ten clients, and can then forget a class."""
