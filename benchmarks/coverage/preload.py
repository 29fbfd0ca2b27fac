"""Imported once by the server that measuring processes are forked from: imports belong to no network's time."""

import warnings

import torch

torch.set_num_threads(1)
warnings.simplefilter("ignore")

import ours  # noqa: E402
import peers  # noqa: E402, F401

from metaprune.core.imports import allow_torchvision_import  # noqa: E402

allow_torchvision_import()

import timm  # noqa: E402, F401
import torchvision  # noqa: E402, F401
from transformers import BertForSequenceClassification, ViTForImageClassification  # noqa: E402, F401

ours.warm_up()
