"""Recovery of accuracy after pruning: peers behind one call, `metaprune.recover.run.recover`.

The options are in `metaprune.recover.config` (without torch).
"""
