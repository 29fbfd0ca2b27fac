"""Graph metanetwork: rewrite a network so that pruning hurts less."""
