"""The channel algebra on labels written out by hand."""

import numpy as np
import pytest

from metaprune.graph.call import Survivors
from metaprune.graph.labels import Atoms, merge_labels, stack_labels
from metaprune.graph.rules.shape import segments


def sets(atoms, label):
    """Rows as sets of root atoms."""
    label = atoms.norm(label)
    return None if label is None else [frozenset(int(a) for a in row if a >= 0) for row in label]


def test_fresh_atoms_are_all_different():
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(2)
    assert sets(atoms, a) == [{0}, {1}, {2}] and sets(atoms, b) == [{3}, {4}]
    assert len(atoms) == 5


def test_many_fresh_atoms_keep_what_was_said_before():
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(3)
    atoms.equate(a, b, "")
    atoms.fresh(5000)
    assert sets(atoms, a) == sets(atoms, b)


def test_merge_is_row_major():
    atoms = Atoms()
    a, b = atoms.fresh(2), atoms.fresh(3)
    expected = [{0, 2}, {0, 3}, {0, 4}, {1, 2}, {1, 3}, {1, 4}]
    assert sets(atoms, merge_labels([(a, 2), (b, 3)])) == expected
    assert sets(atoms, merge_labels([(None, 2), (b, 3)])) == [{2}, {3}, {4}] * 2
    assert sets(atoms, merge_labels([(a, 2), (None, 3)])) == [{0}] * 3 + [{1}] * 3
    assert merge_labels([(None, 2), (None, 3)]) is None


def test_stack_keeps_order_and_frees_what_has_no_label():
    atoms = Atoms()
    a = atoms.fresh(2)
    assert sets(atoms, stack_labels([(None, 1), (a, 2), (None, 1)])) == [set(), {0}, {1}, set()]
    assert stack_labels([(None, 3), (None, 2)]) is None


def test_equate_unifies_row_by_row():
    atoms = Atoms()
    a, b, c = atoms.fresh(2), atoms.fresh(2), atoms.fresh(2)
    atoms.equate(a, b, "")
    atoms.equate(b, c[::-1], "")
    assert sets(atoms, a) == sets(atoms, b) == sets(atoms, c)[::-1]
    assert len(set(sets(atoms, a))) == 2


def test_equate_with_nothing_locks():
    atoms = Atoms()
    a = atoms.fresh(2)
    atoms.equate(a, None, "why")
    assert atoms.norm(a) is None and atoms.lock_reason(a).startswith("why")


def test_lock_of_one_row_leaves_the_others():
    atoms = Atoms()
    a = atoms.fresh(3)
    atoms.lock(a[1:2], "because")
    assert sets(atoms, a) == [{0}, set(), {2}]
    assert atoms.lock_reason(a) == "because"


def test_lock_spreads_over_equations_made_before_and_after():
    atoms = Atoms()
    a, b, c = atoms.fresh(2), atoms.fresh(2), atoms.fresh(2)
    atoms.equate(a, b, "")
    atoms.lock(b, "")
    atoms.equate(c, a, "")
    assert atoms.norm(a) is None and atoms.norm(c) is None


def test_equating_an_atom_with_a_product_defines_it():
    atoms = Atoms()
    flat, rows, columns = atoms.fresh(6), atoms.fresh(2), atoms.fresh(3)
    atoms.equate(flat, merge_labels([(rows, 2), (columns, 3)]), "")
    assert sets(atoms, flat) == [{6, 8}, {6, 9}, {6, 10}, {7, 8}, {7, 9}, {7, 10}]
    assert atoms.over_merged == 0


def test_different_row_counts_are_our_own_defect():
    atoms = Atoms()
    with pytest.raises(AssertionError):
        atoms.equate(atoms.fresh(2), atoms.fresh(3), "")


def test_split_of_a_flat_label():
    atoms = Atoms()
    flat = atoms.fresh(6)
    rows, columns = atoms.split(flat, [2, 3], "")
    assert len(rows) == 2 and len(columns) == 3
    assert sets(atoms, flat) == sets(atoms, merge_labels([(rows, 2), (columns, 3)]))


def test_split_gives_a_constant_factor_to_the_longest_axis_and_a_varying_one_to_its_axis():
    atoms = Atoms()
    a = atoms.fresh(3)
    assert [sets(atoms, x) for x in atoms.split(np.repeat(a, 2, axis=0), [3, 2], "")] == [[{0}, {1}, {2}], None]
    one = atoms.fresh(1)
    assert [sets(atoms, x) for x in atoms.split(np.repeat(one, 6, axis=0), [2, 3], "")] == [None, [{3}, {3}, {3}]]
    assert len(atoms) == 4, "no new atoms were needed"


def test_nested_splits_agree():
    """12 = 2 x 6 and 12 = 2 x 2 x 3 of one label: the inner 6 is the 2 x 3."""
    atoms = Atoms()
    flat = atoms.fresh(12)
    _, six = atoms.split(flat, [2, 6], "")
    _, two, three = atoms.split(flat, [2, 2, 3], "")
    assert sets(atoms, six) == sets(atoms, merge_labels([(two, 2), (three, 3)]))
    assert atoms.over_merged == 0


def test_what_cannot_be_expressed_is_over_merged_and_counted():
    """Row-major 2 x 3 = column-major 3 x 2 has no fine solution: everything becomes one atom, which is sound."""
    atoms = Atoms()
    a, b, c, d = atoms.fresh(2), atoms.fresh(3), atoms.fresh(3), atoms.fresh(2)
    left, right = merge_labels([(a, 2), (b, 3)]), merge_labels([(c, 3), (d, 2)])
    atoms.equate(left, right, "")
    assert sets(atoms, left) == sets(atoms, right)
    assert atoms.over_merged > 0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([2, 6, 5], [2, 2, 3, 5], [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ([2, 3, 4], [24], [([0, 1, 2], [0])]),
        ([4, 1, 6], [2, 2, 6], [([0], [0, 1]), ([2], [2])]),
        ([4, 6], [6, 4], [([0, 1], [0, 1])]),
        ([2, 3, 2, 2], [6, 4], [([0, 1], [0]), ([2, 3], [1])]),
    ],
)
def test_segments(before, after, expected):
    assert segments(before, after) == expected


def test_survivors():
    atoms = Atoms()
    rows, columns = atoms.fresh(2), atoms.fresh(3)
    flat = merge_labels([(rows, 2), (columns, 3)])
    alive = Survivors(atoms, np.array([True, False, True, False, True]))  # rows {0}, columns {0, 2}
    assert alive.index(flat).tolist() == [0, 2]
    assert (alive.count(rows), alive.count(columns), alive.count(flat)) == (1, 2, 2)
    assert alive.before(flat, 2) == 1 and alive.before(flat, 6) == 2
    assert alive.cut(flat) and not alive.cut(None)
