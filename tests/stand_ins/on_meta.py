"""Finds tensors that a computation makes on the host, without a GPU that would wait for them."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OnMeta(TorchDispatchMode):
    """Refuses what an operation makes on another device than "meta"."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            assert not isinstance(leaf, torch.Tensor) or leaf.is_meta, f"{func} on {leaf.device}"
        return made
