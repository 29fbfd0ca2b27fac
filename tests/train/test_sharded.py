"""Two processes on the CPU (gloo): the code of docs/multi-gpu.md trains pruned networks as one process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import ROOT, code_of, run_blocks
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

PAGE = "docs/multi-gpu.md"
FORMS = ("module", "graph")
pytestmark = pytest.mark.slow
SCRIPT = """
import os, sys, warnings
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
warnings.simplefilter("ignore")
folder, rank = Path(sys.argv[3]), int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
from test_sharded import FORMS, page_names, samples, whole_batches

names = page_names()
own = [(x[rank::2], y[rank::2]) for x, y in whole_batches()]

def keep(name, tensors):
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{name}-{rank}.safetensors")

def loaded(form):
    return names["mp"].load(folder / form, factory=names["network"], form=form)

for form in FORMS:
    keep(f"replicated-{form}", names["train_replicated"](loaded(form), own))
    sharded = names["train_sharded"](loaded(form), own)
    if rank == 0:  # the whole state is gathered there
        keep(f"sharded-{form}", sharded)
keep("finetune", names["finetune"](samples(), 8))

parts = torch.nn.Sequential(loaded("graph"))
for part in parts[0].children():
    if list(part.parameters()):
        names["fully_shard"](part)
try:
    parts(own[0][0])
except RuntimeError as error:
    (folder / f"parts-{rank}.txt").write_text(str(error))

from accelerate import Accelerator, FullyShardedDataParallelPlugin
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
prepared = accelerator.prepare(loaded("graph"))
(folder / f"accelerate-{rank}.txt").write_text(f"{accelerator.distributed_type.value} {type(prepared).__name__}")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def page_names():
    return run_blocks(code_of(PAGE), PAGE)


def samples():
    stream = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(16, 3, 8, 8, generator=stream), torch.randint(0, 5, (16,), generator=stream))


def whole_batches():
    x, y = samples().tensors
    return [(x[:8], y[:8]), (x[8:], y[8:])]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder that two processes wrote, and the page's names."""
    folder, names = tmp_path_factory.mktemp("sharded"), page_names()
    for form in FORMS:
        names["prune"](folder / form, form)
    (folder / "script.py").write_text(SCRIPT)
    paths = [str(Path(__file__).parent), str(ROOT / "tests/helpers")]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    variables |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # read, not used
    children = [
        subprocess.Popen(
            [sys.executable, str(folder / "script.py"), *paths, str(folder)],
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [child.wait(300) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    return folder, names


def _close(found, wanted):
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_two_processes_train_as_one(two_processes, way, form):
    folder, names = two_processes
    model = names["mp"].load(folder / form, factory=names["network"], form=form).train()
    assert isinstance(model, torch.fx.GraphModule) == (form == "graph")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    names["train"](model, whole_batches())
    assert any(not torch.equal(before[n], t) for n, t in model.state_dict().items())
    _close(load_file(folder / f"{way}-{form}-0.safetensors"), model.state_dict())


def test_own_training_is_data_parallel(two_processes):
    folder, names = two_processes
    _close(load_file(folder / "finetune-0.safetensors"), load_file(folder / "finetune-1.safetensors"))
    _close(load_file(folder / "finetune-0.safetensors"), names["finetune"](samples(), 8))


def test_parts_of_a_graph_form_cannot_be_sharded_alone(two_processes):
    folder, _ = two_processes
    assert "DTensor" in (folder / "parts-0.txt").read_text()


def test_accelerate_leaves_out_its_sharding_on_the_cpu(two_processes):
    folder, _ = two_processes
    assert (folder / "accelerate-0.txt").read_text() == "MULTI_CPU DistributedDataParallel"
