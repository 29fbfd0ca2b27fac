"""Training of one network: configuration, the loop on Accelerate, checkpoints with exact resume, evaluation.

Import from the modules: `metaprune.train.config.TrainConfig` (without torch), `metaprune.train.loop.train`,
`metaprune.train.evaluate.evaluate`.
"""
