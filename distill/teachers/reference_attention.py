"""Reference attention: a picture's own pass through the U-Net lends its tokens to the pass that is wanted.

Zero123++ (Shi et al. 2023, arXiv 2310.15110, section 2.1) runs the noised condition picture through the same
network and lets every self-attention see its tokens too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dd3g.nn.attention import AttentionKernel


class ReferenceAttention:
    """Attention of all blocks of a diffusers U-Net, as its processors.

    Self-attention keeps what it is given in the reference's pass, and has it as further keys and values in
    the other. Cross-attention takes keys and values that were computed once.

    Args:
        unet: diffusers' UNet2DConditionModel; its processors are replaced, and `attend` of it is theirs.
    """

    def __init__(self, unet: Any) -> None:
        self.kept: dict[str, Tensor] = {}  # block -> the reference's tokens (N, L', D)
        self.keeping = False
        self.attend = unet.attend = AttentionKernel()
        self.context: dict[str, tuple[Tensor, Tensor]] = {}
        names = [name.removesuffix(".processor") for name in unet.attn_processors]
        self._cross = {name: unet.get_submodule(name) for name in names if name.endswith("attn2")}
        unet.set_attn_processor({f"{name}.processor": partial(self._attended, name) for name in names})

    def key_values(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys and values of every cross-attention, of tokens (N, M, D)."""
        return {name: (attn.to_k(tokens), attn.to_v(tokens)) for name, attn in self._cross.items()}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The reference's pass: tokens are kept."""
        self.kept, self.keeping = {}, True
        try:
            yield
        finally:
            self.keeping = False

    def _attended(self, name: str, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The processor of one attention: tokens (N, L, D) -> (N, L, D)."""
        x = seen = hidden_states
        if name in self.context:
            k, v = self.context[name]
        else:
            if self.keeping:
                self.kept[name] = x
            elif name in self.kept:
                seen = torch.cat([x, self.kept[name]], 1)
            k, v = attn.to_k(seen), attn.to_v(seen)
        q, k, v = (a.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for a in (attn.to_q(x), k, v))
        return attn.to_out[0](self.attend(q, k, v).transpose(1, 2).flatten(2))
