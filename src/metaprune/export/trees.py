"""The structure of nested inputs and outputs as JSON, in a format of its own: names and fields, no classes to import.

Tuples, lists, dicts, NamedTuples and registered dataclasses (transformers' outputs are such) are written. A NamedTuple
is read back as a new class of the same name and fields. A dataclass is read back as the registered class, where this
process has it already, else as a `Fields` that is read in the same ways.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
from collections import OrderedDict, namedtuple
from typing import Any

from torch.utils import _pytree as pytree

from metaprune.core.errors import DataError, NotAvailableError

_DEPTH = 50


class Fields(OrderedDict):
    """An output whose class is not imported here: fields by name, as attribute, or by position."""

    class_name = "Fields"

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network's {self.class_name} has no {name!r}: it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are set."""
        return tuple(value for value in self.values() if value is not None)


def _flatten(value: Fields) -> tuple[list[Any], Any]:
    return list(value.values()), (value.class_name, tuple(value))


def _unflatten(values: Any, context: Any) -> Fields:
    name, fields = context
    made = Fields(zip(fields, values, strict=True))
    made.class_name = name
    return made


pytree.register_pytree_node(Fields, _flatten, _unflatten, serialized_type_name="metaprune.Fields")


def tree_to_json(spec: pytree.TreeSpec) -> Any:
    """Describe a structure; a leaf is null.

    Raises:
        NotAvailableError: a class that is neither a NamedTuple nor a registered dataclass, or keys that are no text.
    """
    if spec.is_leaf():
        return None
    items = [tree_to_json(child) for child in spec.children()]
    if spec.type is namedtuple:
        return {"namedtuple": spec.context.__name__, "fields": list(spec.context._fields), "items": items}
    if spec.type in (dict, OrderedDict) and all(isinstance(key, str) for key in spec.context):
        return {spec.type.__name__.lower(): list(spec.context), "items": items}
    if spec.type in (tuple, list):
        return {spec.type.__name__: None, "items": items}
    if spec.type is Fields:
        return {"class": spec.context[0], "fields": list(spec.context[1]), "unset": None, "items": items}
    fields = _fields_of(spec)
    if fields is not None:
        names, unset = fields
        return {"class": _registered_name(spec.type), "fields": names, "unset": unset, "items": items}
    raise NotAvailableError(
        f"inputs or outputs of your own class cannot be written as JSON ({spec.type}): return tensors, tuples, "
        "NamedTuples, lists or dicts, or register the class: "
        "torch.export.register_dataclass(Out, serialized_type_name='my.Out')"
    )


def _registered_name(kind: type) -> str | None:
    definition = pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    name = getattr(definition, "serialized_type_name", None)
    return name if isinstance(name, str) and name != pytree.NO_SERIALIZED_TYPE_NAME_FOUND else None


def _fields_of(spec: pytree.TreeSpec) -> tuple[list[str], list[str] | None] | None:
    """Names of the fields that are set and of those that are not; None of what has no fields by name."""
    kind: Any = spec.type
    if _registered_name(kind) is None or not dataclasses.is_dataclass(kind):
        return None
    context: Any = spec.context
    names, unset = (context[0], context[1]) if _are_names(context, of=list) else (context, None)
    if not _are_names(names, of=str) or not _are_names(unset or [], of=str) or len(names) != len(spec.children()):
        return None
    return list(names), None if unset is None else list(unset)


def _are_names(value: Any, of: type) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, of) for v in value) and (of is str or len(value) == 2)


def tree_from_json(data: Any) -> pytree.TreeSpec:
    """The structure that `tree_to_json` described; no class is called for it, and none imported.

    Raises:
        DataError: a description that it does not write.
    """
    return _spec(data, 0)


def _spec(data: Any, depth: int) -> pytree.TreeSpec:
    if data is None:
        return pytree.tree_structure(0)
    if not isinstance(data, dict) or not isinstance(data.get("items"), list) or depth > _DEPTH:
        raise _foreign(data)
    children = [_spec(item, depth + 1) for item in data["items"]]
    (kind, *more) = [key for key in data if key not in ("items", "fields", "unset")] or [None]
    if kind in ("tuple", "list") and not more:
        return pytree.TreeSpec(tuple if kind == "tuple" else list, None, children)
    names: Any = data.get("fields") if kind in ("namedtuple", "class") else data.get(kind)
    if more or not _are_names(names, of=str) or len(names) != len(children) or len({*names}) != len(names):
        raise _foreign(data)
    if kind in ("dict", "ordereddict"):
        return pytree.TreeSpec(dict if kind == "dict" else OrderedDict, names, children)
    if kind == "namedtuple":
        try:
            return pytree.TreeSpec(namedtuple, namedtuple(data[kind], names), children)  # identifiers or an error
        except (ValueError, TypeError) as error:
            raise DataError(f"the saved network names a NamedTuple that cannot be: {error}") from error
    if kind != "class" or not isinstance(data[kind], str):
        raise _foreign(data)
    return _record(data[kind], names, data.get("unset"), children)


def _foreign(data: Any) -> DataError:
    return DataError(f"the saved network describes inputs or outputs as {str(data)[:80]}, which metaprune does not")


def _record(name: str, names: list[str], unset: Any, children: list[pytree.TreeSpec]) -> pytree.TreeSpec:
    """A structure of the class, if it is registered in this process; of `Fields` if not."""
    every = [*names, *(unset if _are_names(unset, of=str) else [])]
    if not all(n.isidentifier() and not keyword.iskeyword(n) for n in every):
        raise DataError(f"the saved network names fields of {name} that no class has")
    kind: Any = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
    known = {f.name for f in dataclasses.fields(kind) if f.init} if dataclasses.is_dataclass(kind) else set()
    if known and known.issuperset(every):
        return pytree.TreeSpec(kind, names if unset is None else [names, unset], children)
    return pytree.TreeSpec(Fields, (name.rpartition(".")[2], tuple(names)), children)


_OF_TORCH = {"builtins.tuple": "tuple", "builtins.list": "list", "builtins.dict": "dict"}
_OF_TORCH |= {"collections.OrderedDict": "ordereddict"}


def tree_from_torch(text: Any) -> pytree.TreeSpec:
    """The structure in PyTorch's format, which early archives hold: read here, as PyTorch would import what it names.

    Raises:
        DataError: it is no such text, or names another class than `tree_to_json` does.
    """
    try:
        _, data = json.loads(text)
        return tree_from_json(_described(data))
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise _foreign(text) from error


def _described(data: dict[str, Any]) -> Any:
    if data["type"] is None:
        return None
    items = [_described(child) for child in data["children_spec"]]
    context = json.loads(data["context"]) if isinstance(data["context"], str) else data["context"]
    kind = _OF_TORCH.get(data["type"])
    if kind is not None:
        return {kind: context, "items": items}
    names, unset = (context[0], context[1]) if _are_names(context, of=list) else (context, None)
    return {"class": data["type"], "fields": names, "unset": unset, "items": items}
