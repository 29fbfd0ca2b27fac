"""Statistics of BatchNorm: what they are computed by does not matter."""

import pytest
import torch

from metaprune.elastic.batchnorm import spread_of


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_variance_are_those_over_all_but_channels(shape, dtype):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) * 2 + 3
    layouts = [value, value.transpose(0, -1).contiguous().transpose(0, -1)]
    for x in layouts:
        rows = x.double().movedim(1, 0).flatten(1)
        mean, variance = spread_of(x)
        torch.testing.assert_close(mean, rows.mean(1).to(dtype))
        torch.testing.assert_close(variance, rows.var(1, correction=0).to(dtype))
        last = spread_of(x.movedim(1, -1), -1)
        torch.testing.assert_close(last, (mean, variance))
