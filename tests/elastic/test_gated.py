"""Gates of 0 and 1 are the cut network, gates of 1 the network itself; soft gates have the gradient of what they do."""

import numpy as np
import pytest
import torch
from sample_networks import build

from metaprune.testing.networks import TOYS, toy
from metaprune.testing.oracles import perturb, random_plan
from metaprune.tracing import trace
from metaprune.values import Plan

NETWORKS = (
    "resnet20",
    "mobilenet_v2",
    "vit_micro",
    "tv_efficientnet",
    "tv_shufflenet",
    "timm_mobilevit",
    "bert_classifier",
)


def doubles(value):
    return torch.utils._pytree.tree_map(
        lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, value
    )


def first(output):
    leaves = torch.utils._pytree.tree_leaves(output)
    return next(x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point())


def assert_hard_gates_are_the_cut(model, args, kwargs):
    model = perturb(model.eval()).double()
    args, kwargs = doubles(args), doubles(kwargs or {})
    network = trace(model, args, kwargs)
    run = network.gated
    plan = random_plan(network.space, 0.5, seed=1)
    with torch.no_grad():
        for chosen in (Plan(), plan):
            gates = [torch.from_numpy(m).double() for m in chosen.masks(network.space)]
            found = first(run.run(network.tensors, gates, args, kwargs))
            expected = first(network.run(*args, plan=chosen, **kwargs))
            assert torch.linalg.vector_norm(found - expected) <= 1e-10 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("name", TOYS)
def test_hard_gates_are_the_cut_on_toys(name):
    example = toy(name)
    assert_hard_gates_are_the_cut(example.model, example.args, example.kwargs)


@pytest.mark.parametrize("name", NETWORKS)
def test_hard_gates_are_the_cut(name):
    model, args, kwargs = build(name)
    assert_hard_gates_are_the_cut(model, args, kwargs)


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit_micro"])
def test_gradient_of_every_gate(name):
    """Against central differences, at soft gates."""
    model, args, kwargs = build(name)
    model = perturb(model.eval()).double()
    args = doubles(args)
    network = trace(model, args, kwargs)
    run = network.gated
    draw = np.random.default_rng(0)
    gates = [torch.from_numpy(draw.uniform(0.3, 0.9, g.width)).requires_grad_() for g in network.space]

    def value(gates):
        return first(run.run(network.tensors, gates, args, kwargs)).square().sum()

    gradients = torch.autograd.grad(value(gates), gates)
    for g, gradient in enumerate(gradients):
        channel, step = int(draw.integers(len(gradient))), 1e-6
        moved = []
        for sign in (1, -1):
            other = [x.detach().clone() for x in gates]
            other[g][channel] += sign * step
            with torch.no_grad():
                moved.append(float(value(other)))
        expected = (moved[0] - moved[1]) / (2 * step)
        assert abs(float(gradient[channel]) - expected) <= 1e-4 * max(1.0, abs(expected)), network.space.groups[g].name
        assert (gradient != 0).any(), network.space.groups[g].name


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_by_sample_are_the_cut_of_every_sample(name):
    model, args, kwargs = build(name)
    model, args, kwargs = perturb(model).double(), doubles(args), doubles(kwargs)
    network = trace(model, args, kwargs)
    plan = random_plan(network.space, 0.5, seed=1)
    gates = torch.from_numpy(np.concatenate(plan.masks(network.space))).double().expand(2, -1)
    with torch.no_grad():
        found = first(network.gated.run_by_sample(network.tensors, gates, args, kwargs))
        expected = first(network.run(*args, plan=plan, **kwargs))
    assert torch.linalg.vector_norm(found - expected) <= 1e-10 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "tv_shufflenet"])
def test_gradients_by_sample_are_those_of_samples_on_their_own(name):
    model, args, kwargs = build(name)
    model, args = perturb(model).double(), doubles(args)
    network = trace(model, args, kwargs)
    tensors = {n: t.detach() for n, t in network.tensors.items()}

    def gradient(x, samples):
        gates = torch.ones(samples, int(network.space.widths.sum()), dtype=torch.float64, requires_grad=True)
        output = first(network.gated.run_by_sample(tensors, gates, (x,), kwargs))
        return torch.autograd.grad(output[:, 0].sum(), gates)[0]

    (x,) = args
    found = gradient(x, len(x))
    for i in range(len(x)):
        ones = [torch.ones(int(w), dtype=torch.float64, requires_grad=True) for w in network.space.widths]
        output = first(network.gated.run(tensors, ones, (x[i : i + 1].repeat(2, 1, 1, 1),), kwargs))
        torch.testing.assert_close(found[i], torch.cat(torch.autograd.grad(output[0, 0], ones)))
