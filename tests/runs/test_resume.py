"""Training that is killed and restarted, and training in two processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SOURCE = Path(__file__).parents[2] / "src"
SCRIPT = """
import os, sys, time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from metaprune.core.rng import Rng
from metaprune.data import Data
from metaprune.train.config import TrainConfig
from metaprune.train.loop import train

torch.set_num_threads(1)


class Split:
    def __init__(self, seed):
        generator = Rng(seed).torch()
        self.inputs = torch.randn(97, 8, generator=generator)
        self.labels = (self.inputs[:, 0] > 0).long()

    def __len__(self):
        return len(self.labels)

    def batches(self, batch_size, *, device="cpu", rng=None, augment=False, drop_last=False):
        order = torch.arange(len(self)) if rng is None else torch.randperm(len(self), generator=rng.torch())
        for index in order.split(batch_size):
            yield self.inputs[index].to(device), self.labels[index].to(device)


HALVES = Data("halves", Split(1), Split(2), None, 2, (8,), ("low", "high"), "")


def main(folder, signal_at, weights):
    with Rng(0).torch_global():
        noisy = [nn.BatchNorm1d(16), nn.Dropout(0.3)] if "PLAIN" not in os.environ else []
        model = nn.Sequential(nn.Linear(8, 16), *noisy, nn.ReLU(), nn.Linear(16, 2))

    def on_epoch(row):
        if row.epoch == int(signal_at):
            Path(folder, "reached").touch()
            time.sleep(60)  # until the kill

    config = TrainConfig(epochs=6, batch_size=16)
    train(model, HALVES, config, rng=Rng(3), device="cpu", checkpoint_dir=Path(folder), on_epoch=on_epoch)
    save_file(model.state_dict(), weights)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] + os.environ.get("RANK", "0"))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train_halves.py"
    path.write_text(SCRIPT)
    return path


def start(script, *arguments, **environment):
    variables = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)], env=variables)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_training_resumes_bit_for_bit(script, tmp_path):
    assert start(script, tmp_path / "whole", 0, tmp_path / "whole.st").wait(120) == 0
    child = start(script, tmp_path / "killed", 3, tmp_path / "never.st")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "reached").exists():
            assert child.poll() is None, "the child ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert (tmp_path / "killed" / "epoch-0003").is_dir()
    assert start(script, tmp_path / "killed", 0, tmp_path / "killed.st").wait(120) == 0
    assert not (tmp_path / "never.st0").exists()
    whole, resumed = load_file(tmp_path / "whole.st0"), load_file(tmp_path / "killed.st0")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def start_two(script, folder, weights, **environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        **environment,
    }
    children = [start(script, folder, 0, weights, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)]
    try:
        assert [child.wait(180) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()


@pytest.mark.thorough
def test_two_processes_end_with_the_same_weights(script, tmp_path):
    start_two(script, tmp_path / "run", tmp_path / "two.st")
    first, second = load_file(tmp_path / "two.st0"), load_file(tmp_path / "two.st1")
    assert all(torch.equal(first[name], second[name]) for name in first)  # BatchNorm statistics too
    assert (tmp_path / "run" / "epoch-0006").is_dir()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(script, tmp_path):
    """Without dropout and batch statistics, two halves of a batch give the gradient of the whole."""
    start_two(script, tmp_path / "run", tmp_path / "two.st", PLAIN="1")
    assert start(script, tmp_path / "one", 0, tmp_path / "one.st", PLAIN="1").wait(120) == 0
    one, two = load_file(tmp_path / "one.st0"), load_file(tmp_path / "two.st0")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    rows = [
        json.loads((tmp_path / run / "epoch-0006" / "checkpoint.json").read_text())["history"]["rows"][-1]
        for run in ("one", "run")
    ]
    for part in ("train", "val"):
        assert rows[0][part] == pytest.approx(rows[1][part], rel=1e-4)
