"""The executor at any widths: original, sliced, masked and supplied weights, with gradients."""

import pytest
import torch

from metaprune.models import create
from metaprune.testing import perturb, random_plan
from metaprune.tracing import trace


@pytest.fixture(scope="module")
def network():
    return trace(perturb(create("zoo:resnet8"), seed=2).eval(), torch.randn(2, 1, 28, 28))


@pytest.fixture(scope="module")
def x():
    return torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_full_width_is_the_model_in_both_modes(network, x):
    with torch.no_grad():
        assert torch.equal(network.run(x), network.model(x))
        before = {n: b.clone() for n, b in network.model.named_buffers()}
        trained = network.run(x, training=True)
        assert all(torch.equal(before[n], b) for n, b in network.model.named_buffers())  # running statistics untouched
        again = create("zoo:resnet8")
        again.load_state_dict(network.model.state_dict())
        assert torch.equal(trained, again.train()(x))


def test_a_view_of_another_layout_runs():
    """Traced from contiguous inputs, a flattening is a view; of channels-last images it has to be a copy."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 4)).eval()
    net, images = trace(model, torch.zeros(2, 3, 6, 6)), torch.randn(5, 3, 6, 6)
    assert torch.allclose(net.run(images.to(memory_format=torch.channels_last)), model(images), atol=1e-5)


def test_sliced_masked_and_supplied_weights_agree(network, x):
    plan = random_plan(network.space, 0.5, 0)
    alive = network.survivors(plan)
    supplied = {n: t.detach().clone() for n, t in network.sliced(alive).items()}
    with torch.no_grad():
        sliced = network.run(x, plan=plan)
        assert torch.equal(sliced, network.run(x, plan=plan, tensors=supplied))
        assert torch.allclose(sliced, network.run(x, plan=plan, masked=True), rtol=1e-4, atol=1e-5)
        zero = {n: torch.zeros_like(t) for n, t in supplied.items()}
        assert network.run(x, plan=plan, tensors=zero).abs().max() == 0


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_reach_the_kept_rows_only(network, x, masked):
    plan = random_plan(network.space, 0.5, 1)
    network.model.zero_grad()
    network.run(x, plan=plan, masked=masked).square().sum().backward()
    group = network.space.groups[1]
    member = next(m for m in group.members if m.dim == 0)
    grad = network.model.get_parameter(member.parameter).grad.flatten(1).abs().sum(1)
    kept = torch.zeros(group.width, dtype=torch.bool)
    kept[list(plan.keep[group.name])] = True
    assert (grad[kept] > 0).all()
    assert (grad[~kept] == 0).all()
    network.model.zero_grad(set_to_none=True)


def test_masked_and_sliced_gradients_are_equal(network, x):
    plan = random_plan(network.space, 0.5, 2)
    found = []
    for masked in (False, True):
        network.model.zero_grad()
        network.run(x, plan=plan, masked=masked).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in network.model.named_parameters()})
    for name in found[0]:
        scale = found[0][name].abs().max()
        assert (found[0][name] - found[1][name]).abs().max() <= 1e-4 * scale + 1e-7, name
    network.model.zero_grad(set_to_none=True)


def test_another_structure_of_inputs_is_refused(network, x):
    from metaprune.core.errors import PlanError

    with pytest.raises(PlanError, match=r"was traced with .* but was called with"):
        network.run(x, x)


def test_batchnorm_of_the_full_network_comes_back_as_it_is_where_the_dense_statistics_are_known(network, x):
    batches, full = [((x[:3],), {}), ((x[3:],), {})], network.at()
    measured = full.calibrated(network.tensors, batches)
    again = full.calibrated(network.tensors, batches, measured)
    norms = [n for n in network.tensors if n.endswith(("running_mean", "running_var"))]
    assert norms and all(torch.equal(again[n], network.tensors[n]) for n in norms)
    assert not any(torch.equal(measured[n], network.tensors[n]) for n in norms)


def test_batchnorm_of_a_cut_network_is_moved_from_the_dense_statistics(network, x):
    batches, at = [((x,), {})], network.at(random_plan(network.space, 0.6, seed=1))
    measured = network.at().calibrated(network.tensors, batches)
    plain, moved = at.calibrated(at.tensors, batches), at.calibrated(at.tensors, batches, measured)
    dense = network.sliced(at.survivors, tensors=measured)
    for name in (n for n in plain if n.endswith("running_mean")):
        torch.testing.assert_close(moved[name], at.tensors[name] + plain[name] - dense[name])
