"""The Hugging Face Trainer on a pruned network in two CPU processes (gloo): equal weights, that of one process."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import metaprune as mp

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from metaprune.core.imports import allow_torchvision_import
allow_torchvision_import()
from transformers import Trainer, TrainingArguments
import metaprune as mp

class WithLoss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, labels=None):
        logits = self.model(x)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}

folder, processes = sys.argv[1], int(sys.argv[2])
if processes > 1:
    torch.distributed.init_process_group("gloo")
generator = torch.Generator().manual_seed(0)
# one batch: the order of samples does not matter
rows = [{"x": torch.randn(8, generator=generator), "labels": torch.tensor(i % 3)} for i in range(8)]
arguments = TrainingArguments(
    f"{folder}/out-{processes}", use_cpu=True, ddp_backend="gloo" if processes > 1 else None,
    per_device_train_batch_size=8 // processes,
    max_steps=4, learning_rate=0.05, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, report_to="none",
    save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, seed=0,
)
model = WithLoss(mp.load(f"{folder}/pruned", form="graph").train())
trainer = Trainer(model=model, args=arguments, train_dataset=rows)
trainer.train()
tensors = {n: t.contiguous() for n, t in model.state_dict().items()}
save_file(tensors, f"{folder}/{processes}-{arguments.process_index}.safetensors")
if processes > 1:  # gloo's threads end here: an interpreter that ends before them sometimes aborts
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def started(folder, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(processes)} for r in range(processes)]
    variables = [{**base, **rank} if processes > 1 else base for rank in ranks]
    command = [sys.executable, "-c", SCRIPT, str(folder), str(processes)]
    return [subprocess.Popen(command, env=v, stderr=subprocess.PIPE, text=True) for v in variables]


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    mp.prune(model, torch.randn(2, 8), budget="macs=60%", form="graph", progress=False).save(tmp_path / "pruned")
    for children in (started(tmp_path, 1), started(tmp_path, 2)):
        for child in children:
            _, errors = child.communicate(timeout=240)
            assert child.returncode == 0, errors[-2000:]
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    start = mp.load(tmp_path / "pruned", form="graph").state_dict()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert all(torch.allclose(one[n], first[n], atol=1e-6) for n in one)
    assert any(not torch.equal(one[f"model.{n}"], t) for n, t in start.items())
