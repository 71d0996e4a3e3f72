"""The one training loop of the project: exact resume, moving average, any number of processes.

`fit` in `loop.py` takes a network, a loss, samples by index and a `LoopConfig`. It leaves checkpoints and
metrics.jsonl in a folder and returns the averaged network. Read `loop.py` first.
"""

from dd3g.training.config import LoopConfig, SmallNetworkConfig
from dd3g.training.data import Batch, Samples, generator_for, normal_for
from dd3g.training.loop import fit

__all__ = ["Batch", "LoopConfig", "Samples", "SmallNetworkConfig", "fit", "generator_for", "normal_for"]
