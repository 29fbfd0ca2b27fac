"""Integer tensors whose values are positions along a dimension: what `topk` returns of a router, and who may read it.

Dropping indices renumbers positions. Who looks up rows by them follows by itself, as rows are renumbered alike; who
computes with them (compares, counts, returns them) does not. So views hand them on, rules that look up ask for them
(`Call.look_up`), and every other reader locks the dimension.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from metaprune.graph.call import Call, Positions
from metaprune.graph.labels import Atoms

_HANDED_ON = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim")
_HANDED_ON += ("squeeze", "unsqueeze", "expand", "contiguous", "clone", "detach", "alias", "to", "_to_copy", "slice")
_HANDED_ON += ("select", "narrow", "split", "split_with_sizes", "chunk", "unbind")
_SHAPE_READ = ("sym_size", "sym_numel", "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones")


def follow_positions(call: Call) -> None:
    """Hand on the positions that a node's operands hold, or lock the dimensions that they are positions along."""
    for positions in call.unfollowed():
        outputs = call.out if isinstance(call.out, (list, tuple)) else [call.out]
        if call.name in _HANDED_ON and len(call.tensors()) == 1 and all(x.dtype in _EXACT for x in outputs):
            call.fact.positions = dict.fromkeys(range(len(outputs)), positions)
        elif call.name not in _SHAPE_READ:
            call.lock(positions.label, "computes with positions along it")


_EXACT = (torch.int64, torch.int32)


def lock_uneven_choices(atoms: Atoms, choices: Iterable[Positions]) -> None:
    """Lock dimensions that are chosen along whose rows do not go one by one, so that no least width says what stays.

    Example: experts in groups of which a few are chosen first.
    """
    for choice in choices:
        final = atoms.norm(choice.label)
        if final is not None and (final.shape[1] > 1 or final.min() < 0 or len(np.unique(final)) < len(final)):
            atoms.lock(final, "a router chooses among groups of it first")
