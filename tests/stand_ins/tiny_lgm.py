"""LGM's published layout at few channels, with weights that anybody can make again."""

import torch
from safetensors.torch import save_file

from distill.lgm import LGM, Layout

LAYOUT = Layout(
    down=(32, 32, 64, 64),
    up=(64, 32, 32),
    down_attention=(False, False, False, True),
    up_attention=(True, False, False),
)
# At 256 pixels, where the other's attention would take a minute.
DEEP = Layout(
    down=(32, 32, 32, 32, 32, 64),
    up=(64, 32, 32),
    down_attention=(False,) * 5 + (True,),
    up_attention=(True, False, False),
)


def tiny_lgm(seed=0, layout=LAYOUT):
    """An LGM whose every tensor matters."""
    model = LGM(layout).requires_grad_(False).eval()
    g = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        draw = torch.randn(tensor.shape, generator=g)
        if tensor.dim() > 1:
            draw *= (1.5 if "qkv" in name else 0.7) / tensor[0].numel() ** 0.5
        else:
            draw = 0.05 * draw + ("norm" in name and name.endswith("weight"))
        tensor.copy_(draw)
    return model


def save_lgm(folder, model, name="model_fp16_fixrot.safetensors"):
    """The file of a folder as it lies on the hub: half precision, no config."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / name, metadata={"format": "pt"})
    return folder / name
