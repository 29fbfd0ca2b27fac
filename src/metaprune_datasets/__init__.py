"""Built-in data sets, weights and text, fetched from packages into a cache."""
