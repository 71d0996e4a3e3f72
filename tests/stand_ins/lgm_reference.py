"""LGM's network in one function, softmax in the open: slow, and written without the modules that it tests."""

import math

import torch
import torch.nn.functional as F


def twin(w, x):
    """Gaussians (N, 14) of an input (V, 9, S, S) by the tensors `w` of a file."""

    def conv(name, x, **how):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)

    def norm(name, x):
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def resnet(name, x):
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), padding=1)
        h = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)
        return (h + (conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in w else x)) / math.sqrt(2)

    def attention(name, x):
        if f"{name}.norm.weight" not in w:
            return x
        V, C, h, v = x.shape
        tokens = norm(f"{name}.norm", x).permute(0, 2, 3, 1).reshape(-1, C)  # all pixels of all views
        q, k, value = (tokens @ w[f"{name}.attn.qkv.weight"].T).split(C, 1)
        heads = []
        for i in range(16):
            part = slice(i * C // 16, (i + 1) * C // 16)
            score = (q[:, part] @ k[:, part].T / math.sqrt(C // 16)).softmax(1)
            heads.append(score @ value[:, part])
        out = torch.cat(heads, 1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        return (out.reshape(V, h, v, C).permute(0, 3, 1, 2) + x) / math.sqrt(2)

    x = conv("unet.conv_in", x, padding=1)
    skips = [x]
    blocks = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("unet.down_blocks"))
    layers = 1 + max(int(n.split(".")[4]) for n in w if n.startswith("unet.down_blocks.0.nets"))
    for b in range(blocks):
        for i in range(layers):
            x = resnet(f"unet.down_blocks.{b}.nets.{i}", x)
            x = attention(f"unet.down_blocks.{b}.attns.{i}", x)
            skips.append(x)
        if b < blocks - 1:
            x = conv(f"unet.down_blocks.{b}.downsample", x, stride=2, padding=1)
            skips.append(x)
    x = attention("unet.mid_block.attns.0", resnet("unet.mid_block.nets.0", x))
    x = resnet("unet.mid_block.nets.1", x)
    blocks = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("unet.up_blocks"))
    for b in range(blocks):
        for i in range(layers + 1):
            x = resnet(f"unet.up_blocks.{b}.nets.{i}", torch.cat([x, skips.pop()], 1))
            x = attention(f"unet.up_blocks.{b}.attns.{i}", x)
        if b < blocks - 1:
            x = conv(
                f"unet.up_blocks.{b}.upsample", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1
            )
    x = conv("conv", conv("unet.conv_out", F.silu(norm("unet.norm_out", x)), padding=1))
    r = x.permute(0, 2, 3, 1).reshape(-1, 14)
    return torch.cat(
        [
            r[:, :3].clamp(-1, 1),
            1 / (1 + torch.exp(-r[:, 3:4])),
            0.1 * torch.log1p(torch.exp(r[:, 4:7])),
            r[:, 7:11] / r[:, 7:11].norm(dim=1, keepdim=True),
            0.5 * torch.tanh(r[:, 11:]) + 0.5,
        ],
        1,
    )
