"""A Flower app that measures what recording costs a training run."""
