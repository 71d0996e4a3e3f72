from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
torch.set_num_threads(1)
from dd3g import Cameras, Gaussians, rasterize
rotation = torch.tensor([[1.0, 0, 0, 0]])
one = Gaussians(torch.zeros(1, 3), rotation, torch.ones(1, 3), torch.ones(1), torch.ones(1, 3))
rasterize(one, Cameras.orbit([0.0], size=16))
print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_rendering_leaves_the_number_of_torch_threads():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
