"""Gates on the channels of a traced network: their distributions, and how they are trained."""
