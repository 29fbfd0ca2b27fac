"""One thread, no real torchvision operators needed, and the same hypothesis examples in every run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

import torch
from hypothesis import HealthCheck, settings

from metaprune.core.imports import allow_torchvision_import

torch.set_num_threads(1)
allow_torchvision_import()  # before anything imports torchvision, timm or transformers

settings.register_profile(
    "metaprune",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("metaprune")
