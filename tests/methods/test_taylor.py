"""Taylor by sample and by batch on a trained network: the first is the better criterion."""

import dataclasses

import torch
from sample_networks import SHARED, build

import metaprune as mp


def test_per_sample_taylor_keeps_more_of_a_trained_network_than_that_of_batches():
    model, *_ = build("shared_resnet20")
    data = mp.load_data(f"npz:{SHARED / 'cifar10_jpeg.npz'}", limit=1000)
    data = dataclasses.replace(data, test=data.test.take(500))
    accuracy = {}
    for method in ("taylor", "taylor_batch"):
        result = mp.prune(
            model,
            torch.zeros(2, 3, 32, 32),
            budget="macs=50%",
            method=method,
            method_options={"batches": 3},
            data=data,
            recover=mp.RecoverConfig(kind="bn", bn_batches=2),
            progress=False,
        )
        accuracy[method] = result.record["quality"]["recovered"]["accuracy"]
    assert accuracy["taylor"] > accuracy["taylor_batch"] + 0.05
