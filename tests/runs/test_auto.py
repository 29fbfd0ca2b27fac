"""`method="auto"`: what nobody named is what was measured to keep most."""

import dataclasses

import pytest
import torch

import metaprune as mp
from metaprune.core.errors import ConfigError
from metaprune.runs.config import DataConfig, MethodConfig, ModelConfig, RunConfig
from metaprune.testing.method_suite import small_data, small_network
from metaprune.values import Budget

EXAMPLE = torch.zeros(2, 1, 28, 28)


def test_auto_measures_where_there_are_data_and_ranks_by_weights_where_there_are_none():
    with_data, without = (
        mp.prune(small_network("cnn"), EXAMPLE, budget="macs=50%", **given) for given in ({"data": small_data()}, {})
    )
    assert with_data.record["method_options"]["allocate"] == "sensitivity"
    assert with_data.record["compensate"] == "least-squares" and with_data.record["compensation"]["layers"]
    assert without.record["method"] == "magnitude" and without.record["compensate"] == "none"
    own = mp.prune(small_network("cnn"), EXAMPLE, budget="macs=50%", method="uniform", data=small_data())
    assert own.record["compensate"] == "none"
    with pytest.raises(ConfigError, match="name it"):
        mp.prune(small_network("cnn"), EXAMPLE, budget="macs=50%", method_options={"p": 1})


def test_a_config_holds_what_auto_stands_for():
    config = RunConfig(model=ModelConfig(spec="zoo:resnet8"), budget=Budget(macs="50%"))
    assert (config.method.name, config.compensate) == ("magnitude", "none")
    config = dataclasses.replace(config, data=DataConfig(spec="builtin:digits"), method=MethodConfig())
    assert config.method.options["allocate"] == "sensitivity"
    assert RunConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)}) == config
