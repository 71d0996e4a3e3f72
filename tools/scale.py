"""What a distillation costs at each scale: counted from the networks, estimated from stated figures.

    python -m tools.scale -o docs/scale.md

Nothing is computed in full: the networks run on tensors without values, so a laptop counts the largest one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dd3g.cameras import Cameras
from dd3g.command import run_command
from dd3g.configuration import parse
from dd3g.gaussians import Gaussians
from dd3g.io.atomic import replacing
from dd3g.nn.recompute import recompute_blocks
from dd3g.pepd import Generator
from distill.train import DistillConfig

TEMPLATE = Path(__file__).parent / "scale.md"
CONFIGS = ("nano", "small", "base")
GPUS = (1, 8, 64)
PICTURES, EPOCHS = 120_000, 50
PEAK = 989e12  # multiplications and additions a second of an H100 or H200 in bfloat16, without sparsity
TARGET = 0.35  # of that, which a training should reach
DISK = 1e9  # bytes a second to and from a shared file system
GB = 1e9
# One H200, torch 2.11 with CUDA 13.0, bfloat16 autocast, commit f7c212d, 28 November 2026: batch,
# milliseconds forward and backward of the network alone, and peak GB while it ran.
MEASURED = {"nano": (64, 66.6, 2.4), "small": (32, 101.9, 12.6), "base": (4, 138.0, 14.1)}
# torch counts the attention of GPUs only.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass(frozen=True)
class Counted:
    """One network, by its shapes."""

    name: str
    batch: int  # of a process, as configured
    parameters: int
    block: int  # parameters of the largest block
    gaussians: int
    flops: int  # of a sample's forward pass; a multiplication and an addition are two
    saved: int  # bytes that the backward pass of a sample needs
    saved_recomputed: int  # the same with gradient checkpointing
    recomputed: int  # FLOPs of a sample that gradient checkpointing does again
    sample: int  # bytes that go to the GPU for a sample


def count(name: str) -> Counted:
    """Count the generator of a packaged configuration."""
    config = parse(["--config", name], DistillConfig)
    with FakeTensorMode():
        plain, blocks = Generator(config.generator), Generator(config.generator)
        recompute_blocks(blocks)
        flops, saved, made = _pass(plain)
        again, saved_recomputed, _ = _pass(blocks, backward=True)
        both, _, _ = _pass(plain, backward=True)
    size, (views, *latent) = config.generator.size, config.generator.latent_shape
    pixels = size * size
    noise = views * latent[0] * latent[1] * latent[2]
    # Input, views with depth, targets; cameras are small beside them.
    numbers = 4 * pixels * (1 + views + config.targets) + views * pixels + noise
    return Counted(
        name=name,
        batch=config.train_batch_size,
        parameters=sum(p.numel() for p in plain.parameters()),
        block=max(_blocks(plain)),
        gaussians=made,
        flops=flops,
        saved=saved,
        saved_recomputed=saved_recomputed,
        recomputed=again - both,
        sample=4 * numbers,
    )


def _blocks(model: nn.Module) -> list[int]:
    """Parameters of each module that configs/accelerate/fsdp.yaml splits by itself."""
    kinds = ("MultiViewTransformer", "ResidualBlock")
    return [sum(p.numel() for p in m.parameters()) for m in model.modules() if type(m).__name__ in kinds]


def _pass(generator: Generator, backward: bool = False) -> tuple[int, int, int]:
    """FLOPs, bytes kept for the backward pass, and Gaussians, of one sample in bfloat16."""
    c = generator.config
    noise, image = torch.empty(1, *c.latent_shape), torch.empty(1, 4, c.size, c.size)
    cameras = Cameras(torch.empty(len(noise[0]), 4, 4), torch.empty(len(noise[0]), 3, 3), c.size, c.size)
    own = {t.untyped_storage()._cdata for t in (*generator.parameters(), *generator.buffers(), noise, image)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # or the next storage would have its address
        return tensor

    alive: list[Tensor] = []
    for module in generator.modules():
        if "forward" in vars(module):  # recomputed: its inputs are kept, which no hook sees
            module.register_forward_pre_hook(lambda _, args: tree_map_only(Tensor, pack, args) and None)
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with counter:
        with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            made = generator(noise, cameras, image)
        if backward:
            torch.stack([getattr(made, f.name).sum() for f in fields(Gaussians)]).sum().backward()
            generator.zero_grad(set_to_none=True)
    return counter.get_total_flops(), sum(kept.values()), len(made)


def state_bytes(counted: Counted, split: str, gpus: int) -> float:
    """Bytes a GPU holds of weights, gradients, AdamW and average, and of what travels between GPUs.

    Args:
        counted: the network.
        split: "DDP", "FSDP2", "ZeRO-2" or "ZeRO-3".
        gpus: processes.
    """
    P, live = counted.parameters, counted.block
    if (
        split == "DDP"
    ):  # float32: weights, gradients, two moments, average; reduction buckets; bfloat16 copies
        return P * (4 + 4 + 8 + 4 + 2 + (4 if gpus > 1 else 0))
    if split == "FSDP2":  # two blocks at a time are whole
        return P * (4 + 4 + 8 + 4) / gpus + 2 * live * (4 + 4 + 2)
    # Rajbhandari et al. 2020, table 1, with the average beside the optimiser's float32 weights.
    optimizer = P * (4 + 8 + 4) / gpus
    if split == "ZeRO-2":
        return 2 * P + 2 * P / gpus + optimizer
    return 4 * P / gpus + optimizer + 2 * live * (2 + 2)


def hours(counted: Counted, gpus: int, utilisation: float, recompute: bool = False) -> float:
    """Hours for all epochs over all pictures: forward and twice that backward."""
    flops = 3 * counted.flops + (counted.recomputed if recompute else 0)
    return PICTURES * EPOCHS * flops / (gpus * PEAK * utilisation) / 3600


def utilisation(name: str, counted: Counted) -> float:
    """Share of the peak that was measured, of the network alone."""
    batch, milliseconds, _ = MEASURED[name]
    return 3 * counted.flops * batch / (milliseconds / 1e3) / PEAK


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(found: list[Counted]) -> str:
    """docs/scale.md."""
    counted = _table(
        ["", *(c.name for c in found)],
        [
            ["parameters, millions", *(f"{c.parameters / 1e6:.1f}" for c in found)],
            ["Gaussians", *(f"{c.gaussians:,}" for c in found)],
            ["forward, GFLOP a sample", *(f"{c.flops / 1e9:,.1f}" for c in found)],
            ["forward and backward, GFLOP", *(f"{3 * c.flops / 1e9:,.1f}" for c in found)],
            ["kept for the backward pass, GB a sample", *(f"{c.saved / GB:.3f}" for c in found)],
            ["the same with gradient_checkpointing", *(f"{c.saved_recomputed / GB:.3f}" for c in found)],
            ["FLOPs that costs, share", *(f"{c.recomputed / (3 * c.flops):.0%}" for c in found)],
            ["to the GPU, MB a sample", *(f"{c.sample / 1e6:.2f}" for c in found)],
            ["train_batch_size", *(str(c.batch) for c in found)],
            ["to the GPU, MB a step and GPU", *(f"{c.batch * c.sample / 1e6:.1f}" for c in found)],
            ["checkpoint, GB", *(f"{16 * c.parameters / GB:.2f}" for c in found)],
        ],
    )  # fmt: skip
    measured = _table(
        ["network alone, forward and backward", *(c.name for c in found)],
        [
            ["batch", *(str(MEASURED[c.name][0]) for c in found)],
            ["milliseconds", *(str(MEASURED[c.name][1]) for c in found)],
            ["share of the bfloat16 peak", *(f"{utilisation(c.name, c):.1%}" for c in found)],
            ["peak memory, GB", *(str(MEASURED[c.name][2]) for c in found)],
            [
                "counted for that batch, GB",
                *(f"{(MEASURED[c.name][0] * c.saved + 10 * c.parameters) / GB:.1f}" for c in found),
            ],
        ],
    )
    base = found[-1]
    memory = _table(
        ["split", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)],
        [
            [split, *(f"{state_bytes(base, split, gpus) / GB:.2f}" for gpus in GPUS)]
            for split in ("DDP", "FSDP2", "ZeRO-2", "ZeRO-3")
        ],
    )
    rows = []
    for c in found:
        for share, said in ((utilisation(c.name, c), "measured"), (TARGET, "target")):
            cells = [f"{hours(c, gpus, share):,.2f}" for gpus in GPUS]
            again = f"{hours(c, 8, share, recompute=True):,.2f}"
            rows.append([f"{c.name} at {share:.0%}, {said}", *cells, again])
    wall = _table(
        ["hours", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS), "8, gradient_checkpointing"], rows
    )
    seconds = 16 * base.parameters / DISK
    return TEMPLATE.read_text(encoding="utf-8").format(
        counted=counted,
        measured=measured,
        memory=memory,
        wall=wall,
        pictures=PICTURES,
        epochs=EPOCHS,
        peak=PEAK / 1e12,
        target=TARGET,
        disk=DISK / GB,
        seconds=seconds,
    )


def scale_command(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File; else it is printed.")] = None,
) -> None:
    """Count what a distillation costs."""
    text = page([count(name) for name in CONFIGS])
    if output is None:
        print(text, end="")
        return
    with replacing(output) as part:
        part.write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(scale_command, argv, "scale", needs_words=False)


if __name__ == "__main__":
    raise SystemExit(main())
