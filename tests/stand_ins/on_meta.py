"""Finds tensors that a computation makes on the host, without a GPU that would wait for them."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FROM_THE_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.new_tensor)
COPIES = (torch.ops.aten.copy_.default,)  # from one device to another, where it is asked for
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class OnMeta(ExitStack):
    """While it is entered, nothing may come from another device than "meta"."""

    def __enter__(self) -> OnMeta:
        self.enter_context(_Results())
        self.enter_context(_Numbers())
        return self


class _Results(TorchDispatchMode):
    """Refuses what an operation makes elsewhere, and tensors of two devices in one; single numbers may be."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        taken = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        if any(a.is_meta for a in taken) and func not in COPIES:
            strangers = [a for a in taken if not a.is_meta and a.dim()]
            assert not strangers, f"{func} of tensors on meta and {strangers[0].device}"
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            assert not isinstance(leaf, torch.Tensor) or leaf.is_meta, f"{func} on {leaf.device}"
        return made


class _Numbers(TorchFunctionMode):
    """Refuses numbers of Python that become a tensor, which is copied from the host: lists as indices, too.

    No operation tells of these copies, but a CUDA graph cannot hold them.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FROM_THE_HOST:
            data = args[1] if func is torch.Tensor.new_tensor else args[0]
            assert isinstance(data, torch.Tensor), f"{func.__name__} of numbers on cpu"
        if func in INDEXING:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, list | np.ndarray) for i in index), "a list as an index, made on cpu"
        return func(*args, **(kwargs or {}))
