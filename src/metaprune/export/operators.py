"""What a saved graph may call, and with what: operators of a list, arguments matched against their schemas."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.amp.autocast_mode import _enter_autocast as enter_autocast
from torch.amp.autocast_mode import _exit_autocast as exit_autocast

from metaprune.graph.rules import RULES
from metaprune.graph.rules.elementwise import is_pointwise

# without a rule, so never cut through, but they only compute: graphs hold them where a network calls them
UNCUT = frozenset(
    [
        "as_strided",
        "bincount",
        "bucketize",
        "cdist",
        "copy",
        "cross",
        "diag",
        "diag_embed",
        "diagonal",
        "diff",
        "dist",
        "embedding_bag",
        "fill",
        "fliplr",
        "flipud",
        "fractional_max_pool2d",
        "inner",
        "isclose",
        "kron",
        "leaky_relu",
        "linalg_cross",
        "linalg_inv",
        "linalg_norm",
        "linalg_matrix_norm",
        "logit",
        "masked_scatter",
        "masked_select",
        "matrix_exp",
        "msort",
        "multinomial",
        "nansum",
        "native_group_norm",
        "native_layer_norm",
        "nonzero",
        "outer",
        "quantile",
        "randint_like",
        "randperm",
        "ravel",
        "reflection_pad3d",
        "renorm",
        "replication_pad3d",
        "searchsorted",
        "select_scatter",
        "slice_scatter",
        "sum_to_size",
        "take",
        "trace",
        "unique_consecutive",
        "unique_dim",
        "_unique2",
        "vander",
        "vstack",
        "hstack",
        "dstack",
        "column_stack",
        "block_diag",
        "cartesian_prod",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "_assert_tensor_metadata",
    ]
)
# the only texts an operator may be given, by the argument's name
_TEXTS = {
    "approximate": re.compile("none|tanh"),
    "rounding_mode": re.compile("trunc|floor"),
    "mode": re.compile("constant|reflect|replicate|circular"),
    "padding": re.compile("same|valid"),
    "indexing": re.compile("ij|xy"),
    "reduce": re.compile("add|multiply|sum|prod|mean|amax|amin"),
    "equation": re.compile(r"[A-Za-z,.> -]{1,200}"),
    "interpolation": re.compile("linear|lower|higher|midpoint|nearest"),
}
FUNCTIONS = {
    **{
        f"operator.{n}": getattr(operator, n)
        for n in ("getitem", "mul", "add", "sub", "floordiv", "mod", "neg", "truediv", "pow")
    },
    **{f"operator.{n}": getattr(operator, n) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    "builtins.getattr": getattr,
    "torch.enter_autocast": enter_autocast,
    "torch.exit_autocast": exit_autocast,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_int": torch.sym_int,
    "torch.sym_float": torch.sym_float,
}
_UNARY = ("operator.neg", "torch.sym_int", "torch.sym_float", "torch.exit_autocast")
_READABLE = ("device", "dtype")  # attributes that getattr may read
_LARGEST = 2**32  # elements of a tensor that a saved size may ask for
_NAME = re.compile(r"[A-Za-z0-9_]+")


def is_allowed(target: Any) -> bool:
    """Whether graphs with this operator are written and read: computes from tensors and numbers, and nothing else."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    name, schema = target._schema.name.removeprefix("aten::"), target._schema
    if not (name in RULES or name in UNCUT or is_pointwise(target)):
        return False
    if any(a.is_out for a in schema.arguments):
        return False  # writes into memory that another argument names
    kinds = [_kind(a)[0] for a in schema.arguments]
    texts = {a.name for a, kind in zip(schema.arguments, kinds, strict=True) if kind == "str"}
    return all(kind in _FITS for kind in kinds) and texts <= _TEXTS.keys()


def operator_name(target: Any) -> str | None:
    """`aten::relu.default` or `operator.mul`; None of what is not allowed."""
    if is_allowed(target):
        return f"{target._schema.name}.{target._overloadname}"
    return next((name for name, function in FUNCTIONS.items() if function is target), None)


def operator_of(name: str) -> Callable[..., Any] | None:
    """What `operator_name` named; None of anything else."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    packet, dot, overload = name.removeprefix("aten::").partition(".")
    if not name.startswith("aten::") or not dot or not all(map(_NAME.fullmatch, (packet, overload))):
        return None
    # attributes of Python objects are no operators: the dispatcher's own list of schemas decides
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{packet}")
    if overload not in [schema.overload_name or "default" for schema in schemas]:
        return None
    target = getattr(getattr(torch.ops.aten, packet), overload)
    return target if is_allowed(target) else None


def misfit(name: str, target: Any, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """What is wrong with the decoded arguments of a call; None if they are such as a graph of metaprune has."""
    if name in FUNCTIONS:
        return _function_misfit(name, args, kwargs)
    arguments = {a.name: a for a in target._schema.arguments}
    positional = [a for a in target._schema.arguments if not a.kwarg_only]
    if len(args) > len(positional):
        return f"{len(args)} arguments, which takes {len(positional)}"
    bound = {a.name: value for a, value in zip(positional, args, strict=False)}
    if odd := [key for key in kwargs if key not in arguments or key in bound]:
        return f"an argument {odd[0]!r}"
    bound |= kwargs
    if missing := [a.name for a in arguments.values() if a.name not in bound and not a.has_default_value()]:
        return f"no {missing[0]!r}"
    for key, value in bound.items():
        if not _fits(arguments[key], value) or not _bounded(target, key, value):
            return f"{key}={str(value)[:60]!r}"
    return None


def _function_misfit(name: str, args: tuple, kwargs: dict[str, Any]) -> str | None:
    count = 4 if name == "torch.enter_autocast" else 1 if name in _UNARY else 2
    if kwargs or len(args) != count:
        return f"{len(args)} arguments and {len(kwargs)} keywords, which takes {count}"
    if name == "builtins.getattr":
        fits = isinstance(args[0], fx.Node) and args[1] in _READABLE
    elif name == "torch.enter_autocast":
        kinds = (str, torch.dtype, bool, (bool, type(None)))
        fits = all(map(isinstance, args, kinds)) and args[0] in ("cpu", "cuda", "mps", "xpu")
    elif name == "operator.getitem":
        fits = isinstance(args[0], fx.Node) and (isinstance(args[1], fx.Node) or _is_int(args[1]))
    else:
        fits = any(isinstance(a, fx.Node) for a in args) and all(
            isinstance(a, (fx.Node, float)) or _is_int(a) for a in args
        )
    small = name != "operator.pow" or all(isinstance(a, fx.Node) or abs(a) <= 64 for a in args)
    return None if fits and small else f"the arguments {str(args)[:80]}"


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, float)) or _is_int(value)


_FITS: dict[str, Callable[[Any], bool]] = {
    "Tensor": _is_number,  # a number stands for a tensor of one element
    "int": _is_int,
    "SymInt": _is_int,
    "float": _is_number,
    "number": _is_number,
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "ScalarType": lambda v: isinstance(v, torch.dtype),
    "Layout": lambda v: isinstance(v, torch.layout),
    "MemoryFormat": lambda v: isinstance(v, torch.memory_format),
    "Device": lambda v: isinstance(v, torch.device),
    "Generator": lambda v: False,  # none but the global one
}
_WRAPPED = re.compile(r"(Optional|List)\[(.+)\]")


def _kind(argument: Any) -> tuple[str, list[str]]:
    """The innermost type of a schema's argument, and what is around it, outermost first."""
    text, around = str(argument.real_type), []
    while match := _WRAPPED.fullmatch(text):
        around.append(match[1])
        text = match[2]
    return text, around


def _fits(argument: Any, value: Any) -> bool:
    kind, around = _kind(argument)
    if isinstance(value, str):
        pattern = _TEXTS.get(argument.name)
        return kind == "str" and pattern is not None and pattern.fullmatch(value) is not None
    return _matches(kind, around, value, argument.N is not None)


def _matches(kind: str, around: list[str], value: Any, one_for_all: bool) -> bool:
    if isinstance(value, fx.Node):
        return kind not in ("str", "Generator")
    if around[:1] == ["Optional"]:
        return value is None or _matches(kind, around[1:], value, one_for_all)
    if around[:1] == ["List"]:
        if isinstance(value, (list, tuple)):
            return all(_matches(kind, around[1:], v, False) for v in value)
        return one_for_all and _matches(kind, around[1:], value, False)
    return _FITS[kind](value)


_SIZES = ("size", "repeats", "shape", "num_classes", "output_size", "pad", "padding")
_EXTENTS = ("end", "steps", "n", "m", "row", "col")  # sizes where nothing but numbers is given: arange, eye


def _bounded(target: Any, name: str, value: Any) -> bool:
    """Whether a size that a file names can be one of a tensor: it is allocated when the graph runs."""
    makes = name in _EXTENTS and not any(_kind(a)[0] == "Tensor" for a in target._schema.arguments)
    if name not in _SIZES and not makes:
        return True
    count = 1
    for part in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(part, (int, float)) and abs(part) > 1:
            count *= abs(part)
    return count <= _LARGEST
