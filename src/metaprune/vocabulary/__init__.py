"""Fewer tokens: rows of the embedding and of the head of a language model, and a tokenizer that agrees with them."""

from metaprune.vocabulary.prune import PrunedVocabulary, prune_vocabulary

__all__ = ["PrunedVocabulary", "prune_vocabulary"]
