"""A Flower app: rounds without training."""
