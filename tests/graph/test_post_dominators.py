"""Which nodes are computed for one value alone: against reachability, on random graphs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from metaprune.graph.branches import _PostDominators


@st.composite
def graphs(draw):
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(draw(st.integers(1, 14))):
        reads = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
        nodes.append(graph.call_function(torch.ops.aten.cat.default, (reads,)))
    graph.output(tuple(draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=2))))
    return list(graph.nodes)


def reaches_output(node, without):
    if node is without:
        return False
    return node.op == "output" or any(reaches_output(user, without) for user in node.users)


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_a_node_is_over_another_if_no_way_to_the_output_avoids_it(nodes):
    number = {n: i for i, n in enumerate(nodes)}
    tree = _PostDominators(nodes, number)
    assert tree.unread == {n for n in nodes if not reaches_output(n, None)}
    read = [n for n in nodes if n not in tree.unread]
    for a in read:
        for b in read:
            assert tree.over(number[a], number[b]) == (not reaches_output(b, a))
            meeting = tree.meet(number[a], number[b])
            above = [c for c in read if not reaches_output(a, c) and not reaches_output(b, c)]
            assert nodes[meeting] in above  # the nearest of them: all others are over it
            assert all(not reaches_output(nodes[meeting], c) for c in above)
