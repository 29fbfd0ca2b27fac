"""Folders of transformers, whether or not a model's layers differ: `metaprune.hf.save_pretrained` and back.

A cut that the config can say as it is (`keep_config=True`) needs neither: `model.save_pretrained` writes it.
"""

from metaprune.export.hf_folder import from_pretrained, save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
