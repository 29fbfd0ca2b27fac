"""STAMP (Song et al., 2020): a mask generated from the target data set, on weights that were meta-trained for it."""
