"""A Flower app whose model is as large as one likes, on synthetic data."""
