"""The moving average of a model, by hand."""

import torch
from torch import nn

from dd3g.training.averaging import Average


def test_whole_numbers_are_the_last_ones_and_others_follow():
    model, copy = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    average, mean = Average(model, 0.9), torch.zeros(2)
    draw = torch.Generator().manual_seed(0)
    for k in range(1, 4):
        model(torch.randn(4, 2, generator=draw))
        average.step()
        mean = mean.lerp(model.running_mean, k**-0.75)
    average.copy_to(copy)
    assert copy.num_batches_tracked == 3
    torch.testing.assert_close(copy.running_mean, mean)
