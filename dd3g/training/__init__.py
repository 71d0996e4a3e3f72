"""The one training loop of the project: exact resume, moving average, any number of processes.

`fit` in `loop.py` takes a network, a loss, samples by index and a `LoopConfig`. It leaves checkpoints and
metrics.jsonl in a folder and returns the averaged network. Read `loop.py` first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dd3g.training.config import LoopConfig, SmallNetworkConfig

if TYPE_CHECKING:
    from dd3g.training.data import Batch, Samples, generator_for, normal_for
    from dd3g.training.loop import fit

__all__ = ["Batch", "LoopConfig", "Samples", "SmallNetworkConfig", "fit", "generator_for", "normal_for"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, as in `dd3g`: configurations are read without torch.
    if name in __all__:
        return getattr(import_module(f"dd3g.training.{'loop' if name == 'fit' else 'data'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
