"""Labelled graph -> `Space`: atoms of one membership and one origin form one channel group."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from metaprune.graph.captured import Captured
from metaprune.graph.labelling import Labelled
from metaprune.graph.roles import ATTENTION_ROLES, HIDDEN, ROLES, STREAM
from metaprune.values import ChannelGroup, LockedDim, Member, Space

# names that say "output side" or "what kind" of a parameter, not which layer it belongs to
_LEAF = re.compile(r"\.(weight|bias|running_mean|running_var|in_proj_weight|in_proj_bias|(weight|bias)_[ih]h_l\d+\w*)$")


def build_space(captured: Captured, labelled: Labelled, roles: np.ndarray) -> Space:
    """Groups in the order of their first parameter; what is locked is listed with its reason.

    roles: int [atoms], index into `ROLES`.
    """
    read = _read_dims(captured, labelled)
    atoms = labelled.atoms
    uses: list[tuple[str, int, np.ndarray]] = []  # (parameter, dim, final label)
    locked: list[LockedDim] = []
    for name, labels in labelled.parameters.items():
        for dim, raw in enumerate(labels):
            if raw is None or len(raw) == 0:
                continue
            final = atoms.final(raw)
            stays = len(raw) if final is None else int((final < 0).all(axis=1).sum())
            if stays:
                locked.append(
                    LockedDim(name, dim, len(raw), stays, atoms.lock_reason(raw) or "never leaves this dimension")
                )
            if final is not None:
                uses.append((name, dim, final))
    signature = _signatures(uses, _alike(labelled), len(atoms))
    classes: dict[tuple[int, int], list[int]] = defaultdict(list)
    used = np.unique(np.concatenate([f[f >= 0] for _, _, f in uses])) if uses else np.empty(0, dtype=np.int64)
    # rows and columns of a square (GroupNorm of 32 times 32 channels) have one membership, but are two choices: keeping
    # rows alone would keep nothing
    for atom, origin in zip(used, atoms.origin(used), strict=True):
        classes[int(signature[atom]), int(origin)].append(int(atom))
    first_use = np.full(len(atoms), len(uses), dtype=np.int64)
    for i, (_, _, label) in reversed(list(enumerate(uses))):
        first_use[label[label >= 0]] = i
    ordered = sorted(classes.values(), key=lambda c: (first_use[c[0]], c[0]))
    groups = _groups(ordered, uses, roles, labelled, read)
    return Space(tuple(groups), tuple(locked), atoms.over_merged)


def _read_dims(captured: Captured, labelled: Labelled) -> set[tuple[str, int]]:
    """Parameter dimensions that every use sums over: the layer reads these channels, another one makes them."""
    uses: dict[str, list[set[int]]] = defaultdict(list)
    for node in captured.graph.nodes:
        summed: dict[str, set[int]] = defaultdict(set)
        if (fact := labelled.facts.get(node.name)) is not None:
            for consumed in fact.consumed:
                operand = consumed.operand(node)
                summed[operand.name].add(consumed.dim % operand.meta["val"].dim())
        for argument in node.all_input_nodes:
            if argument.name in captured.sources:
                uses[captured.sources[argument.name]].append(summed[argument.name])
    return {(name, dim) for name, dims in uses.items() for dim in set.intersection(*dims)}


def _alike(labelled: Labelled) -> Iterator[np.ndarray]:
    """Labels that tell channels of one group from others, besides parameters: of MAC terms, and of choices."""
    for choice in labelled.choices:
        final = labelled.atoms.final(choice.label)
        if final is not None:
            yield final
    for fact in labelled.facts.values():
        for term in fact.macs:
            for dim in term:
                final = None if dim.label is None else labelled.atoms.final(dim.label)
                if final is not None:
                    yield final


def _signatures(uses: list, costs: Iterator[np.ndarray], n: int) -> np.ndarray:
    """One 64-bit sum per atom over all (dimension, number of occurrences): equal sums mean equal membership."""
    draw = np.random.default_rng(0)  # a hash function, not a choice: collisions have probability 2^-64
    signature = np.zeros(n, dtype=np.uint64)
    labels = [label for _, _, label in uses] + list(costs)
    counts: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # many dimensions hold the same atoms
    for label in labels:
        contents = label.tobytes()
        if contents not in counts:
            counts[contents] = np.unique(label[label >= 0], return_counts=True)
        atoms, count = counts[contents]
        signature[atoms] += count.astype(np.uint64) * np.uint64(draw.integers(1, 2**63, dtype=np.int64) | 1)
    return signature


def _least_widths(labelled: Labelled, owner: np.ndarray, count: int) -> np.ndarray:
    """Of every group, how many of its channels have to stay, int64 [groups]: its share of what a choice takes, else 1.

    Groups that a choice is among together keep as many as it takes, whichever they are.
    """
    least = np.ones(count, dtype=np.int64)
    for choice in labelled.choices:
        final = labelled.atoms.final(choice.label)
        if final is not None:
            of = owner[final[:, 0]]
            held = np.bincount(of[of >= 0], minlength=count)
            least = np.maximum(least, -(-choice.taken * held // len(final)))
    return least


def _groups(
    classes: list[list[int]], uses: list, roles: np.ndarray, labelled: Labelled, read: set[tuple[str, int]]
) -> list[ChannelGroup]:
    n = len(roles)
    owner = np.full(n + 1, -1, dtype=np.int64)  # the padding -1 reads the last entry
    position = np.zeros(n + 1, dtype=np.int64)
    for g, atoms in enumerate(classes):
        owner[atoms] = g
        position[atoms] = np.arange(len(atoms))
    least = _least_widths(labelled, owner, len(classes))
    members: list[list[Member]] = [[] for _ in classes]
    grids: dict[Any, list[tuple[int, np.ndarray]]] = {}
    for name, dim, label in uses:
        contents = (label.shape, label.tobytes())
        if contents not in grids:
            grids[contents] = list(_grids(label, owner, position, classes))
        for g, grid in grids[contents]:
            side = "reads" if (name, dim) in read else "makes" if len(labelled.parameters[name]) > 1 else "follows"
            members[g].append(Member(name, dim, grid, side))
    taken: dict[str, int] = {}
    groups = []
    for atoms, where, kept in zip(classes, members, least.tolist(), strict=True):
        role = ROLES[roles[atoms[0]]]
        if role == STREAM and len(_producers(where)) < 2:  # an addition inside one layer's output carries nothing on
            role = HIDDEN
        name = f"{_name(where)}:{role}" if role in ATTENTION_ROLES else _name(where)
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
        groups.append(ChannelGroup(unique, len(atoms), tuple(where), np.array(atoms, dtype=np.int64), role, kept))
    return groups


def _grids(
    label: np.ndarray, owner: np.ndarray, position: np.ndarray, classes: list[list[int]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Every group among the atoms of a label, with its rows, int64 [channels, rows per channel]."""
    rows, columns = np.nonzero(label >= 0)
    atoms = label[rows, columns]
    for g in np.unique(owner[atoms]):
        here = owner[atoms] == g
        order = np.lexsort((rows[here], position[atoms[here]]))
        yield int(g), rows[here][order].reshape(len(classes[g]), -1)


def _producers(members: list[Member]) -> list[Member]:
    """Weights with the group on their output side."""
    return [m for m in members if m.dim == 0 and m.parameter.endswith("weight")]


def _name(members: list[Member]) -> str:
    """The layer that produces the channels: the first weight matrix with the group on its output side."""
    produced = _producers(members)
    first = next((m for m in produced if not re.search(r"(bn|norm|ln)[^.]*\.weight$", m.parameter)), None)
    return _LEAF.sub("", (first or (produced or members)[0]).parameter)
