"""Scoring rules: what features do not depend on, the zoo, the search, and the rule that ships."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.data import TensorSplit
from metaprune.methods.criteria.taylor import first_order_changes
from metaprune.methods.metagraph import zoo
from metaprune.methods.metagraph.channel_features import OF_CHANNELS, OF_GROUPS, channel_features
from metaprune.methods.metagraph.config import ScoreConfig
from metaprune.methods.metagraph.method import MetaGraph
from metaprune.methods.metagraph.rule_fit import SHIPPED, of_zoo, zoo_subject
from metaprune.methods.metagraph.rule_search import PLAIN, Subject, judged, search_rule
from metaprune.methods.metagraph.score_rule import FEATURES, Rule
from metaprune.methods.metagraph.zoo_networks import FAMILIES, build_network
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.oracles import perturb
from metaprune.train.config import TrainConfig

IMAGE = torch.zeros(2, 1, 28, 28)
LITTLE = ScoreConfig(steps=2, pairs=1, networks=2, shares=(0.5,), judge_every=1)


def task_of(model):
    return PruneTask(mp.trace(model.eval(), IMAGE), small_data(), batch_size=32)


def layers():
    """Conv-BN-ReLU twice, then Linear-ReLU-Linear; behind the pooling every channel is four inputs."""
    torch.manual_seed(0)
    return perturb(
        nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False),
            nn.BatchNorm2d(6, eps=0.0),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 12),
            nn.ReLU(),
            nn.Linear(12, 10),
        ),
        seed=1,
    )


@torch.no_grad()
def rescaled(model):
    """The same function: every channel times a positive number of its own, undone where it is read."""
    generator = torch.Generator().manual_seed(2)

    def factors(count):
        return 2.0 ** torch.randint(-3, 4, (count,), generator=generator)  # round-off stays as it is

    conv1, norm, conv2, linear1, linear2 = (model[i] for i in (0, 1, 3, 7, 9))
    before, behind, second, third = factors(6), factors(6), factors(8), factors(12)
    conv1.weight *= before[:, None, None, None]  # which BatchNorm divides out
    norm.running_mean *= before
    norm.running_var *= before**2
    norm.weight *= behind
    norm.bias *= behind
    conv2.weight *= second[:, None, None, None] / behind[None, :, None, None]
    conv2.bias *= second
    linear1.weight *= third[:, None] / second.repeat_interleave(4)[None]
    linear1.bias *= third
    linear2.weight /= third
    return model


def test_features_are_those_of_the_function_whatever_the_scale_of_channels():
    x = torch.randn(4, 1, 28, 28)
    model = layers().eval()
    given, others = channel_features(task_of(model), Rng(0)), model(x)
    again = rescaled(model)
    assert torch.allclose(again(x), others, atol=1e-5)
    found = channel_features(task_of(again), Rng(0))
    for before, after in zip(given.of_channels, found.of_channels, strict=True):
        assert before.shape == (len(before), len(OF_CHANNELS))
        assert np.ptp(before, axis=0).min() > 0.1  # each tells channels apart
        np.testing.assert_allclose(after, before, atol=1e-5)
    assert given.of_groups.shape == (3, len(OF_GROUPS))
    np.testing.assert_allclose(found.of_groups, given.of_groups, atol=1e-5)


def test_a_constant_channel_changes_nothing_about_its_mean():
    model = layers()
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 0.0, 3.0
    task = task_of(model)
    means = {name: place.mean for name, place in mp.calibrate(task.network, task.data, samples=64).places.items()}
    about_zero, about_mean = (first_order_changes(task, mp.Plan(), 2, Rng(0), about)[0] for about in (None, means))
    assert about_zero[2] > 1e-6
    assert about_mean[2] < 1e-9 * about_zero[2]
    assert (about_mean[[0, 1, 3, 4, 5]] > 1e-6).all()


# ---------------------------------------------------------------------------------------------------- the zoo


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_rebuilt_from_plain_data_and_has_features(family):
    options = json.loads(json.dumps(FAMILIES[family].draw(Rng(3).numpy())))
    model = perturb(build_network(family, options, 10), seed=0).eval()
    task = PruneTask(mp.trace(model, torch.zeros(2, 1, 16, 16)), _noise())
    features = channel_features(task, Rng(0))
    assert [len(f) for f in features.of_channels] == task.network.space.widths.tolist()
    assert all(np.isfinite(f).all() for f in (*features.of_channels, features.of_groups))


def _noise(name="noise"):
    data = small_data()
    parts = {}
    for part in ("train", "val", "test"):
        images, labels = next(iter(getattr(data, part).batches(96)))
        pixels = (images[:, :, :16, :16] * 60 + 120).clamp(0, 255).to(torch.uint8)
        parts[part] = TensorSplit(pixels.contiguous(), labels, (0.5,), (0.3,))
    return dataclasses.replace(data, **parts, input_shape=(1, 16, 16))


@pytest.fixture
def little_zoo(monkeypatch):
    short = TrainConfig(epochs=1, batch_size=32, augment=False)
    monkeypatch.setattr(zoo, "zoo_data", _noise)
    monkeypatch.setattr(zoo, "SGD", short)
    monkeypatch.setattr(zoo, "ADAMW", dataclasses.replace(short, optimizer="adamw", lr=1e-3))


def test_a_zoo_that_was_stopped_goes_on_to_the_same_networks(little_zoo, tmp_path):
    said = []
    zoo.make_zoo(tmp_path, 3, 0, 1, said.append)
    assert said[0] == "0 of 3 networks are there"
    weights = {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    (tmp_path / "0001.json").unlink()  # what is last is missing: killed between the two
    first = (tmp_path / "0000.json").stat().st_mtime_ns
    zoo.make_zoo(tmp_path, 3, 0, 1, said.append)
    assert said[4] == "2 of 3 networks are there"
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")} == weights
    assert (tmp_path / "0000.json").stat().st_mtime_ns == first
    networks = zoo.read_zoo(tmp_path)
    assert [n.family for n in networks] == list(FAMILIES)[:3]
    with pytest.raises(mp.ConfigError, match="another seed"):
        zoo.make_zoo(tmp_path, 3, 1, 1, said.append)
    with pytest.raises(mp.ConfigError, match="make more"):
        of_zoo(networks, dataclasses.replace(LITTLE, least_accuracy=0.0), zoo_subject)


def test_every_part_has_every_family_and_data_set():
    described = [zoo._described(n, 0) for n in range(120)]
    kinds = {(d["part"], d["family"], d["data"]) for d in described}
    assert len(kinds) == 3 * len(FAMILIES) * len(zoo.DATA)


def test_a_folder_without_networks_is_refused(tmp_path):
    with pytest.raises(mp.ConfigError, match="metaprune zoo make"):
        zoo.read_zoo(tmp_path)


# ---------------------------------------------------------------------------------------------------- the search


def test_a_search_is_never_worse_than_the_plain_criteria_where_it_is_judged():
    subjects = [Subject.of(task_of(model), Rng(0)) for model in (layers(), small_network("cnn"))]
    found = search_rule(subjects, subjects, LITTLE, Rng(0))
    assert judged(found.rule, subjects, LITTLE.shares) <= min(judged(r, subjects, LITTLE.shares) for r in PLAIN)
    assert [row["step"] for row in found.history] == [0, 1, 2]
    other = search_rule(subjects, subjects, LITTLE, Rng(1))
    assert other.history[1] != found.history[1]


def test_the_same_seed_gives_the_same_artifact_which_prunes_another_network(tmp_path):
    method = MetaGraph(score=LITTLE)
    tasks = [task_of(layers()), task_of(small_network("cnn"))]
    artifacts = [method.fit(tasks, Rng(5)) for _ in range(2)]
    assert torch.equal(artifacts[0].tensors["weights"], artifacts[1].tensors["weights"])
    artifacts[0].save(tmp_path)
    plans = [
        m.propose(task_of(small_network("transformer")), mp.Budget(macs="60%"), Rng(0)).plan
        for m in (method.restore(artifacts[0]), MetaGraph(artifact=str(tmp_path)))
    ]
    assert plans[0] == plans[1]
    assert plans[0].keep


# ---------------------------------------------------------------------------------------------------- the method


class Rows(nn.Module):
    """Reads an image row by row through an LSTM, which no network of the zoo has."""

    def __init__(self):
        super().__init__()
        self.first, self.mid, self.head = nn.Linear(28, 16), nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.mid(torch.relu(self.first(x[:, 0])))[0][:, -1])


def test_the_rule_that_ships_prunes_a_network_unlike_the_zoos():
    torch.manual_seed(0)
    result = mp.prune(
        Rows(), IMAGE, budget="macs=60%", method="metagraph", data=small_data(), compensate="none", progress=False
    )
    record = result.record
    assert record["cost"]["after"]["macs"] <= 0.6 * record["cost"]["before"]["macs"]
    details = record["method_details"]["metagraph"]
    assert details["rule"] == Artifact.load(SHIPPED, "metagraph").info["rule"]


def test_what_ships_is_small_and_says_what_it_is_of():
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 5_000_000
    info = Artifact.load(SHIPPED, "metagraph").info
    assert info["features"] == FEATURES
    assert info["networks"]["learned_from"] > 30
    assert min(row["log_loss"] for row in info["history"][1:]) < info["history"][0]["log_loss"]


@pytest.mark.parametrize("option", [{"initial": 0.8}, {"pattern": "2:4"}, {"strength": 0.5}, {"criterion": "taylor"}])
def test_options_of_a_rewrite_are_refused(option):
    with pytest.raises(mp.ConfigError, match='objective = "rewrite"'):
        MetaGraph(**option)
    assert MetaGraph(objective="rewrite", **option)


def test_an_artifact_of_other_features_is_refused_before_any_training():
    rule = Rule.of(taylor=1.0)
    artifact = Artifact("metagraph", rule.tensors, {"options": {"objective": "score"}, "features": ["old"]})
    with pytest.raises(mp.ConfigError, match="fit it again"):
        MetaGraph().restore(artifact).require_feasible(task_of(layers()), mp.Budget(macs="60%"))
