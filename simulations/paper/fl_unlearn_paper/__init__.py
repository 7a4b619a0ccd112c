"""A Flower app that runs one of the paper's scenarios."""
