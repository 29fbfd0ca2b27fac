"""Operators by what they mean to the graph: layers, norms, casts, slices, products, activations."""

from __future__ import annotations

CONVS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
MATRICES = ("linear", "matmul", "mm", "addmm")
NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
VECTORS = ("weight", "bias", "running_mean", "running_var")
ADDS = ("add", "add_", "sub", "sub_")
CASTS = ("to", "_to_copy", "float", "double", "half", "type_as", "expand", "expand_as", "contiguous")
LINEAR = (*CASTS, "dropout", "dropout_", "feature_dropout", "clone", "getitem", "mul", "mul_", "div", "div_")
SLICES = (
    "slice",
    "narrow",
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "chunk",
    "unsafe_chunk",
)
PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention")
ACTIVATIONS = ("none", "relu", "gelu", "silu", "sigmoid", "tanh", "other")
SMOOTH = {
    "relu": "relu",
    "relu6": "relu",
    "hardtanh": "relu",
    "leaky_relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "hardswish": "silu",
    "mish": "silu",
    "sigmoid": "sigmoid",
    "hardsigmoid": "sigmoid",
    "tanh": "tanh",
}
