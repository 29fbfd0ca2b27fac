"""STAMP in several processes and in mixed precision: the same tensors on all ranks, and those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.core.strict import from_dict
from metaprune.methods.gating.training import Price, gradient_step, sgd
from metaprune.methods.stamp.episodes import Pool
from metaprune.methods.stamp.meta import MetaConfig, fill_bank
from metaprune.methods.stamp.method import Stamp
from metaprune.protocol.method import PruneTask
from metaprune.runs.config import RunConfig
from metaprune.runs.fit import fit
from metaprune.testing.method_suite import small_data, small_network
from metaprune.tracing import trace
from metaprune.train.processes import ALONE, Processes

SOURCE = Path(__file__).parents[3] / "src"
META = {"episodes": 2, "inner_steps": 2, "batch_size": 25, "ways": (2, 4), "augment": False, "save_every": 1}
OPTIONS = {"meta": META, "sets": 1, "set_dim": 8, "heads": 2, "hidden": 8}
RECIPE = {
    "data": {"spec": "builtin:digits", "limit": 120},
    "budget": {"params": "50%"},
    "device": "cpu",
    "method": {"name": "stamp", "options": OPTIONS},
    "latency": {"repeats": 0},
}
SCRIPT = """
import os, sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
warnings.simplefilter("ignore")
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[2]}/meet", rank=int(os.environ["RANK"]), world_size=2
)
from test_stamp_processes import fitted

for name in ("mlp", "resnet8"):
    artifact = fitted(name, f"{sys.argv[2]}/{name}")
    save_file(dict(artifact.tensors), f"{sys.argv[2]}/{name}-{os.environ['RANK']}.safetensors")
torch.distributed.destroy_process_group()
"""
pytestmark = pytest.mark.filterwarnings("ignore:the mask generator gives every data set")


def fitted(name, folder):
    """A recipe fitted in `folder`; the mlp has no BatchNorm."""
    model = {"spec": f"zoo:{name}", "options": {"width": 0.25} if name == "resnet8" else {}}
    return fit(from_dict(RunConfig, {**RECIPE, "model": model}), folder, progress=False)


def test_two_processes_hold_the_same_tensors_and_one_of_them_writes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    variables = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    children = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), str(Path(__file__).parent), str(tmp_path)],
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    torch.set_num_threads(1)
    alone = fitted("mlp", tmp_path / "alone")  # while the two are at work
    try:
        assert [child.wait(180) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    for network in ("mlp", "resnet8"):  # statistics of batches are each process's own, but what is kept is rank 0's
        first, second = (load_file(tmp_path / f"{network}-{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert (tmp_path / network / "log.txt").read_text().count("fit done") == 1
        assert [p.name for p in (tmp_path / network / "checkpoints" / "stamp").iterdir()] == ["epoch-0002"]
    two = load_file(tmp_path / "mlp" / "artifact.safetensors")
    assert not any("running" in name for name in two)
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("samples", "count"), [(24, 1), (25, 2), (24, 5), (9, 4), (7, 4), (1, 2)])
def test_parts_of_the_shares_make_the_mean_of_the_batch(samples, count):
    values, seen, mean = torch.rand(samples, dtype=torch.float64), [], 0.0
    for rank in range(count):
        processes = Processes()
        processes.rank, processes.count = rank, count
        own, part = processes.share(samples)
        seen += list(range(samples))[own]
        mean += part * float(values[own].mean()) / count
    assert mean == pytest.approx(float(values.mean()), rel=1e-12)
    whole = list(range(samples))
    assert sorted(seen) == whole or (samples < 2 * count and seen == whole * count)


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_bfloat16_leaves_sets_gates_and_tensors_in_float32(kind):
    """The network's products are rounded; what is read of a set and what is trained are not."""
    task = PruneTask(trace(small_network(kind), torch.zeros(2, 1, 28, 28)), small_data())
    seen = set()

    class Rounding(Processes):
        def autocast(self):
            return torch.autocast("cpu", torch.bfloat16)

    short = {**META, "episodes": 1, "inner_steps": 1, "batch_size": 8, "mixed_precision": "bf16"}
    method = from_dict(Stamp, {**OPTIONS, "meta": short}, "stamp")
    learner = method._learner(task, Rng(0), task.network.tensors)
    pool = Pool(task.data, "cpu")
    fill_bank(learner, [pool], method.meta, Rng(0))
    run, sample = learner.gated.run, pool.draw(range(10), 20, Rng(1), augment=False)

    def spy(*args, **kwargs):
        output = run(*args, **kwargs)
        seen.add((args[1][0].dtype, output.dtype))
        return output

    learner.gated.run = spy
    results = []
    for processes in (ALONE, Rounding()):
        weights = learner.weights(task.network.tensors, 10)
        for head in weights.head.values():
            head.data.normal_(generator=torch.Generator().manual_seed(0))
        steps = (sgd(weights, 0.05, 0.3),)
        results.append(gradient_step(learner, weights, steps, sample, Rng(2), Price(1.0, 0.3), processes))
        assert {t.dtype for t in weights.tensors().values() if t.is_floating_point()} == {torch.float32}
    assert seen == {(torch.float32, torch.float32), (torch.float32, torch.bfloat16)}
    assert results[0].kept_cost == results[1].kept_cost
    assert results[0].loss != results[1].loss == pytest.approx(results[0].loss, rel=0.05)
    artifact = method.fit([task], Rng(0))
    assert all(torch.isfinite(t).all() for t in artifact.tensors.values() if t.is_floating_point())


def test_precisions_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="mixed_precision='fp16' is not one of no, bf16"):
        Stamp(meta=MetaConfig(mixed_precision="fp16"))


def test_several_processes_on_one_gpu_are_refused():
    class Accelerator:
        process_index, num_processes, device = 1, 2, torch.device("cuda:1")

    with pytest.raises(ConfigError, match="set_device"):
        Processes(Accelerator(), torch.device("cuda:0"))
    assert Processes(Accelerator(), torch.device("cuda:1")).share(8) == (slice(1, None, 2), 1.0)
