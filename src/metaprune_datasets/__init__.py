"""Built-in data sets, weights and text, fetched from packages into a cache."""

import metaprune.data  # noqa: F401 - it and this package need each other: it has to be first, whoever is imported first
