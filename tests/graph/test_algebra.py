"""Laws of the channel algebra, on generated labels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metaprune.graph.labels import Atoms, merge_labels, stack_labels


@st.composite
def labels(draw, rows=6, count=2, pool=8):
    """Atoms with `count` labels of `rows` rows, each row up to two atoms of a pool."""
    cell = st.integers(-1, pool - 1)
    made = []
    for _ in range(count):
        width = draw(st.integers(1, 2))
        made.append(np.array([[draw(cell) for _ in range(width)] for _ in range(rows)], dtype=np.int64))
    return pool, made


def store(pool):
    atoms = Atoms()
    atoms.fresh(pool)
    return atoms


def sets(atoms, label):
    label = atoms.norm(label)
    return None if label is None else [frozenset(int(a) for a in row if a >= 0) for row in label]


def equal(atoms, a, b):
    empty = [frozenset()]
    x, y = sets(atoms, a), sets(atoms, b)
    rows = len(a if a is not None else b)
    return (empty * rows if x is None else x) == (empty * rows if y is None else y)


@given(labels())
def test_norm_is_idempotent(made):
    pool, (a, b) = made
    atoms = store(pool)
    atoms.equate(a, b, "")
    once = atoms.norm(a)
    twice = atoms.norm(once)
    assert (once is None and twice is None) or np.array_equal(once, twice)


@given(labels())
def test_equate_makes_equal_and_is_idempotent(made):
    pool, (a, b) = made
    atoms = store(pool)
    atoms.equate(a, b, "")
    assert equal(atoms, a, b)
    before, merged = sets(atoms, a), atoms.over_merged
    atoms.equate(a, b, "")
    assert sets(atoms, a) == before and atoms.over_merged == merged


@given(labels())
def test_equate_is_symmetric(made):
    """Both orders accept the same survivors, unless one had to over-merge (sound either way)."""
    pool, (a, b) = made
    one, other = store(pool), store(pool)
    one.equate(a, b, "")
    other.equate(b, a, "")
    if one.over_merged == other.over_merged == 0:
        whole = np.arange(pool)[:, None]
        assert _partition(one, whole) == _partition(other, whole)


def _partition(atoms, label):
    final = sets(atoms, label) or [frozenset()] * len(label)
    return [[x == y for y in final] for x in final]


@given(labels(count=3))
def test_equations_last(made):
    """Nothing said later undoes an equation: equality, once made, holds after any further equation."""
    pool, (a, b, c) = made
    atoms = store(pool)
    atoms.equate(a, b, "")
    atoms.equate(b, c, "")
    assert equal(atoms, a, b) and equal(atoms, b, c) and equal(atoms, a, c)


@given(labels(count=1))
def test_lock_is_final(made):
    pool, (a,) = made
    atoms = store(pool)
    atoms.lock(a, "locked")
    assert atoms.norm(a) is None
    atoms.equate(a, atoms.fresh(len(a)), "")
    assert atoms.norm(a) is None


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_merge_then_split_is_the_identity(sizes, data):
    atoms = Atoms()
    parts = [(atoms.fresh(n) if n > 1 and data.draw(st.booleans()) else None, n) for n in sizes]
    atoms_before = len(atoms)
    back = atoms.split(merge_labels(parts), sizes, "")
    for (label, n), again in zip(parts, back, strict=True):
        assert label is None or equal(atoms, label, again)
        assert label is not None or again is None or n == max(sizes)
    assert len(atoms) == atoms_before and atoms.over_merged == 0


@given(st.lists(st.integers(2, 4), min_size=1, max_size=3))
def test_split_then_merge_is_the_identity(sizes):
    atoms = Atoms()
    flat = atoms.fresh(int(np.prod(sizes)))
    parts = atoms.split(flat, sizes, "")
    assert equal(atoms, flat, merge_labels(list(zip(parts, sizes, strict=True))))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=4))
def test_stack_then_slice_is_the_identity(pieces):
    atoms = Atoms()
    parts = [(atoms.fresh(n) if tracked else None, n) for tracked, n in pieces]
    whole = stack_labels(parts)
    start = 0
    for label, n in parts:
        if whole is not None:
            assert equal(atoms, whole[start : start + n], label if label is not None else np.full((n, 1), -1))
        start += n
    assert (whole is None) == all(label is None for label, _ in parts)
