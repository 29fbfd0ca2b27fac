"""Networks as graphs: nothing twice, nothing lost, there and back bit for bit; the metanetwork keeps the symmetries."""

import numpy as np
import pytest
import torch
from sample_networks import build
from torch import nn

from metaprune.methods.metagraph.build_graph import build_network_graph
from metaprune.methods.metagraph.channel_ids import match_channels, occurrence
from metaprune.methods.metagraph.kernels import taps_of
from metaprune.methods.metagraph.metanet import Graph, Metanet, MetanetConfig, _Reduced
from metaprune.models import create
from metaprune.surgery import cut
from metaprune.testing.networks import TOYS, toy
from metaprune.testing.oracles import perturb, random_plan
from metaprune.tracing import trace

NETWORKS = (
    "resnet20",
    "mobilenet_v2",
    "vit_micro",
    "tv_efficientnet",
    "tv_shufflenet",
    "timm_mobilevit",
    "bert_classifier",
)


def parameters_of(network):
    return {n: t for n, t in network.tensors.items() if isinstance(t, nn.Parameter)}


def assert_each_element_once(network, network_graph):
    """The positions are an arange's own encoding: each must occur once, and what does not is declared."""
    for name, tensor in parameters_of(network).items():
        parts = [p.positions.reshape(-1) for p in network_graph.parts() if p.parameter == name]
        found = torch.cat([*parts, torch.empty(0, dtype=torch.int64)])
        assert len(found.unique()) == len(found)
        assert len(found) + network_graph.uncovered.get(name, 0) == tensor.numel()


def assert_round_trip(network, network_graph, alive=None):
    tensors = {n: t.detach().clone() for n, t in network.tensors.items()}
    at = network_graph.at(alive)
    values = at.values(tensors)
    assert not any(v.data_ptr() == t.data_ptr() for v in values for t in tensors.values())
    back = at.written(tensors, values)
    assert all(torch.equal(back[n], t) for n, t in tensors.items())
    changed = at.written(tensors, [v + 1 for v in values])
    sliced = network.sliced(alive, tensors=tensors)
    for name, after in network.sliced(alive, tensors=changed).items():
        if isinstance(network.tensors[name], nn.Parameter) and not network_graph.uncovered.get(name):
            assert torch.equal(after, sliced[name] + 1)  # every surviving element, and by its own value
    for name, tensor in tensors.items():
        moved = int((changed[name] != tensor).sum())
        assert moved <= sliced[name].numel()


def check(model, args, kwargs=None):
    network = trace(perturb(model.eval()), args, kwargs or {})
    network_graph = build_network_graph(network)
    assert_each_element_once(network, network_graph)
    assert_round_trip(network, network_graph)
    for seed in range(3):
        assert_round_trip(network, network_graph, network.survivors(random_plan(network.space, 0.5, seed=seed)))
    ends = torch.cat([e.flatten() for block in network_graph.edges for e in (block.out, block.into)])
    assert ends.min() >= 0
    assert ends.max() < network_graph.nodes
    return network, network_graph


@pytest.mark.parametrize("name", TOYS)
def test_toys_there_and_back(name):
    example = toy(name)
    check(example.model, example.args, example.kwargs)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_there_and_back(name):
    model, args, kwargs = build(name)
    network, network_graph = check(model, args, kwargs)
    share = sum(network_graph.uncovered.values()) / sum(t.numel() for t in parameters_of(network).values())
    # what is not covered: BERT's vocabulary and positions, a ViT's positions
    assert share < (0.9 if name == "bert_classifier" else 0.05)


def test_counts_are_the_papers():
    """ResNet-56, VGG-19: the node counts of the reference; VGG's edges too (its only blocks are dense ones)."""
    for name, classes, nodes in (("resnet20", 10, 701), ("resnet56", 10, 2045), ("vgg19_bn", 100, 5607)):
        network = trace(create(f"zoo:{name}", num_classes=classes), torch.zeros(1, 3, 32, 32))
        network_graph = build_network_graph(network)
        assert network_graph.nodes == nodes
        assert not network_graph.uncovered
    assert network_graph.edge_count == 2_275_520


def test_a_vision_transformers_counts_add_up():
    """Queries, keys, values, normalisations and heads have nodes of their own."""
    model = create("zoo:vit_micro", num_classes=10)
    network = trace(model, torch.zeros(1, 1, 28, 28))
    network_graph = build_network_graph(network)
    width, blocks, heads, hidden = 64, 4, 4, 256
    per_block = 2 * width + 3 * width + width + hidden + width + heads
    assert network_graph.nodes == 1 + width + blocks * per_block + 10
    counts = network_graph.counts()["edges"]
    assert counts["head"] == blocks * 3 * width
    assert counts["product"] == blocks * width
    assert counts["linear"] == blocks * (4 * width * width + 2 * width * hidden) + 10 * width
    assert list(network_graph.uncovered) in ([], ["pos_embed"])


@pytest.mark.parametrize("pixels", [16, 32, 64])
def test_a_map_as_wide_as_a_layer_is_no_layer(pixels):
    """Option A's shortcuts slice maps of 16 to 64 pixels, as many as there are channels."""
    network_graph = build_network_graph(trace(create("zoo:resnet20"), torch.zeros(1, 3, pixels, pixels)))
    assert network_graph.counts()["edges"]["identity"] == 16 * 4 + 32 * 3 + 64 * 2
    assert network_graph.counts()["nodes"]["input"] == 3


@pytest.mark.parametrize("tokens", [16, 17])
def test_as_many_tokens_as_channels(tokens):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mlp, self.head = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 10)

        def forward(self, x):
            return self.head(self.mlp(self.embed(x)[:, 1:]).relu().mean(1))

    network_graph = build_network_graph(trace(Model(), torch.zeros(1, tokens, 8)))
    assert network_graph.nodes == 8 + 16 + 12 + 10
    assert network_graph.counts()["edges"] == {"linear": 8 * 16 + 16 * 12 + 12 * 10}


@pytest.mark.parametrize(("name", "shape"), [("resnet20", (3, 32, 32)), ("vit_micro", (1, 28, 28))])
def test_a_cut_networks_graph_is_the_graph_at_its_plan(name, shape):
    args = (torch.randn(2, *shape, dtype=torch.float64),)
    network, network_graph, tensors = doubled(create(f"zoo:{name}", num_classes=10), args)
    plan = random_plan(network.space, 0.5, seed=0)
    alive = network.survivors(plan)
    small = trace(cut(network, plan).model.eval(), args)
    own, at = build_network_graph(small), network_graph.at(alive)
    assert (own.nodes, own.counts()["edges"]) == (at.nodes, at.counts()["edges"])
    metanet = rewriter()
    ours = network.sliced(alive, tensors=rewrite(metanet, at, tensors))
    theirs = rewrite(metanet, own, {n: t.detach() for n, t in small.tensors.items()})
    assert distance(theirs, dict(ours)) < 1e-9


# ---------------------------------------------------------------------------------------------------- equivariance


def permuted(network, tensors, group, order):
    """`tensors` with the channels of one group in another order, in every member."""
    found = dict(tensors)
    for member in group.members:
        index = np.arange(found[member.parameter].shape[member.dim])
        index[member.rows] = member.rows[order]
        found[member.parameter] = found[member.parameter].index_select(member.dim, torch.from_numpy(index))
    return found


def rewriter(form="gated"):
    torch.manual_seed(0)
    metanet = Metanet(MetanetConfig(hidden=6, layers=2, form=form)).double()
    for parameter in (metanet.kernel_add, metanet.vector_add, metanet.vector_scale, metanet.kernel_scale.weight):
        nn.init.normal_(parameter)
    return metanet


def rewrite(metanet, network_graph, tensors):
    with torch.no_grad():
        return network_graph.written(tensors, metanet(Graph(network_graph, tensors, torch.float64), 0.5))


def distance(a, b):
    return max(float((a[n] - b[n]).abs().max()) for n in a if a[n].is_floating_point() and a[n].numel())


def doubled(model, args):
    network = trace(perturb(model.eval()).double(), tuple(a.double() for a in args))
    return network, build_network_graph(network), {n: t.detach() for n, t in network.tensors.items()}


@pytest.mark.parametrize("form", ["gated", "paper"])
@pytest.mark.parametrize(
    "name",
    ["residual", "concat", "grouped", "flatten", "shuffle", "packed_qkv", "squeeze_excite", "resnet20", "vit_micro"],
)
def test_permuting_any_group_permutes_the_rewrite(name, form):
    if name in TOYS:
        example = toy(name)
        model, args = example.model, example.args
    else:
        model, args, _ = build(name)
    network, network_graph, tensors = doubled(model, args)
    metanet = rewriter(form)
    new = rewrite(metanet, network_graph, tensors)
    assert distance(new, tensors) > 1e-3
    for group in network.space:
        order = np.random.default_rng(0).permutation(group.width)
        other = permuted(network, tensors, group, order)
        before, after = (
            network.run(*network.captured.example[0]),
            network.run(*network.captured.example[0], tensors=other),
        )
        assert torch.allclose(before, after, atol=1e-10)  # it is a symmetry of the function
        assert distance(rewrite(metanet, network_graph, other), permuted(network, new, group, order)) < 1e-9


def test_what_is_no_symmetry_changes_the_rewrite():
    example = toy("residual")
    network, network_graph, tensors = doubled(example.model, example.args)
    metanet = rewriter()
    new = rewrite(metanet, network_graph, tensors)
    group = network.space.groups[0]
    order = np.roll(np.arange(group.width), 1)
    half = type(group)(group.name, group.width, group.members[:1], group.atoms, group.role)
    other = permuted(network, tensors, half, order)  # in one tensor only
    assert distance(rewrite(metanet, network_graph, other), permuted(network, new, half, order)) > 1e-4


def test_the_dimensions_of_every_head_can_be_permuted_on_their_own():
    """Queries and keys of one head, reordered alike: the plan's groups tie all heads, the function does not."""
    model = create("zoo:vit_micro", num_classes=10)
    network, network_graph, tensors = doubled(model, (torch.randn(2, 1, 28, 28),))
    metanet = rewriter()
    new = rewrite(metanet, network_graph, tensors)
    pairs = next(e for e in network_graph.edges if e.kind == "product")
    queries = {int(n): i for i, n in enumerate(pairs.out[:, 0])}
    dim = len(queries) // 4
    order = np.arange(len(queries))
    order[:dim] = np.random.default_rng(0).permutation(dim)  # of the first head only

    def reordered(values):
        found = dict(values)
        for part in network_graph.parts():
            if part in network_graph.edges:
                nodes, rows = part.out[0], part.positions[0].flatten(1)
            else:
                nodes, rows = part.nodes, part.positions
            for side in (pairs.out[:, 0], pairs.into[:, 0]):
                where = {int(n): i for i, n in enumerate(nodes)}
                if all(int(n) in where for n in side):
                    at = torch.tensor([where[int(n)] for n in side])
                    flat = found[part.parameter].reshape(-1).clone()
                    flat[rows[at].reshape(-1)] = flat[rows[at[torch.from_numpy(order)]].reshape(-1)]
                    found[part.parameter] = flat.view(found[part.parameter].shape)
        return found

    x = network.captured.example[0][0]
    other = reordered(tensors)
    assert distance(other, tensors) > 1e-3
    assert torch.allclose(network.run(x), network.run(x, tensors=other), atol=1e-10)
    assert distance(rewrite(metanet, network_graph, other), reordered(new)) < 1e-9


@pytest.mark.parametrize("form", ["gated", "paper"])
def test_an_untrained_metanetwork_rewrites_nothing(form):
    _, network_graph, tensors = doubled(create("zoo:resnet8"), (torch.randn(2, 1, 28, 28),))
    metanet = Metanet(MetanetConfig(hidden=6, layers=2, form=form)).double()
    assert all(torch.equal(v, tensors[n]) for n, v in rewrite(metanet, network_graph, tensors).items())


def test_recomputing_gives_the_same_gradients():
    _, network_graph, tensors = doubled(toy("residual").model, toy("residual").args)
    found = []
    for checkpointing in (False, True):
        metanet = rewriter()
        metanet.config = MetanetConfig(hidden=6, layers=2, checkpointing=checkpointing)
        sum(v.sum() for v in metanet(Graph(network_graph, tensors, torch.float64), 0.3)).backward()
        found.append([p.grad.clone() for p in metanet.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dim", [1, 2])
def test_the_recomputed_product_has_the_right_gradient(dim):
    torch.manual_seed(0)
    state = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    source = torch.randn(2, 4 if dim == 2 else 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: _Reduced.apply(a, b, dim), (state, source))


# ---------------------------------------------------------------------------------------------------- keys and kernels


def test_occurrences_and_places():
    assert occurrence(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert match_channels(np.array([5, 4]), [np.array([4, 5])]).tolist() == [1, 0]
    assert match_channels(np.array([7, 9]), [np.array([9]), np.array([7])]).tolist() == [1, 0]
    assert match_channels(np.array([4, 4, 5, 5]), [np.array([4, 5])]).tolist() == [0, 0, 1, 1]  # a flattened map
    assert match_channels(np.array([8]), [np.array([4, 5])]).tolist() == [-1]
    locked = np.array([-1, -2, -3, -4])
    assert match_channels(locked, [np.array([-1, -2])], flattened=True).tolist() == [0, 0, 1, 1]
    assert (
        match_channels(locked, [np.array([-1, -2])]).tolist() == [-1] * 4
    )  # a sum of 2 and 4 channels: who knows which
    assert (
        match_channels(locked, [np.array([1, 2, 3, 4])]).tolist() == [-1] * 4
    )  # pixels or tokens, as many as channels
    assert match_channels(np.array([-1, -2, -3]), [np.array([-1]), np.array([-1, -2])]).tolist() == [
        0,
        1,
        2,
    ]  # end to end
    assert match_channels(np.array([], dtype=np.int64), [np.array([1])]).tolist() == []


def test_kernels_lie_by_their_centres():
    assert taps_of((1, 1), 1).tolist() == [24]
    assert taps_of((3, 3), 9).tolist() == [16, 17, 18, 23, 24, 25, 30, 31, 32]
    assert taps_of((), 1).tolist() == [24]
    assert taps_of((3,), 3).tolist() == [23, 24, 25]
    assert taps_of((16, 16), 256).tolist() == list(range(49, 305))
    assert taps_of((), 4).tolist() == [49, 50, 51, 52]
