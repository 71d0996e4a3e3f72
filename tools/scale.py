"""What a distillation costs at each scale: counted from the networks, estimated from stated figures.

    python -m tools.scale -o docs/scale.md
    python -m tools.scale --gpus 3 --pictures 40000 --config my.yaml

Nothing is computed in full: the networks run on tensors without values, so a laptop counts the largest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dd3g.cameras import Cameras
from dd3g.command.configuration import parse
from dd3g.command.run import command_line
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io.atomic import write_text
from dd3g.nn.multiview_unet import MultiViewUNetConfig
from dd3g.nn.recompute import recompute_blocks
from dd3g.pepd import Generator
from dd3g.pepd.config import TeacherPhase
from distill.train import DistillConfig

TEMPLATE = Path(__file__).parent / "scale.md"
FSDP = Path(__file__).parents[1] / "configs/accelerate/fsdp.yaml"
CONFIGS = ("nano", "small", "base")
COMPACT = "base, compact phase 1"  # start.teacher=''
# ImageDream as published; its files need not be there.
IMAGEDREAM = TeacherPhase(
    unet=MultiViewUNetConfig(ip_dim=16),
    vae={
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
)
GPUS = [1, 8, 64]
PICTURES, EPOCHS = 120_000, 50
PEAK = 989e12  # multiplications and additions a second of an H100 or H200 in bfloat16, without sparsity
TARGET = 0.35  # of that, which a training should reach
INTERVAL = 2000  # checkpointing_steps of base
DISK = 1e9  # bytes a second to and from a shared file system
STORED = 1.3  # bytes of a quadruple for each pixel of its input and views: PNG, and the latents
GB = 1e9
# One H200, torch 2.11 with CUDA 13.0, bfloat16 autocast, commit f7c212d, 28 November 2026: batch,
# milliseconds forward and backward of the network alone, and peak GB while it ran.
MEASURED = {"nano": (64, 66.6, 2.4), "small": (32, 101.9, 12.6), COMPACT: (4, 138.0, 14.1)}
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
    trained: int  # of them; the others have neither gradient nor moments nor an average of their own
    block: int  # parameters of the largest block
    gaussians: int
    flops: int  # of a sample's forward pass; a multiplication and an addition are two
    both: int  # of forward and backward pass
    saved: int  # bytes that the backward pass of a sample needs
    saved_recomputed: int  # the same with gradient checkpointing
    recomputed: int  # FLOPs of a sample that gradient checkpointing does again
    copies: int  # bytes of bfloat16 weights that the backward pass needs, whatever the batch
    sample: int  # bytes that go to the GPU for a sample
    pixels: int  # of a quadruple's input and views

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: weights, and average and two moments of what is trained."""
        return 4 * self.parameters + 12 * self.trained


@cache
def count(name: str) -> Counted:
    """Count the generator of a configuration, packaged or in a file, or `COMPACT`.

    Raises:
        UserError: when there is no such configuration, or it describes no generator.
    """
    config = parse(["--config", name.partition(",")[0]], DistillConfig)
    shape = config.generator
    if config.start.teacher and name != COMPACT:
        chosen = {name: getattr(config.start, name) for name in ("top_only", "lower", "rank", "lower_rate")}
        shape = replace(shape, teacher=replace(IMAGEDREAM, **chosen))
    pixels, (views, *latent) = shape.size**2, shape.latent_shape
    with FakeTensorMode():
        try:
            generator = Generator(shape)
        except ValueError as error:
            raise UserError(f"configuration {name}: {error}") from error
        flops, both, one, made = _pass(generator)
        _, two = _forward(generator, batch=2)
        recompute_blocks(generator)
        _, again, one_recomputed, _ = _pass(generator)
        _, two_recomputed = _forward(generator, batch=2)
    return Counted(
        name=name,
        batch=config.train_batch_size,
        parameters=sum(p.numel() for p in generator.parameters()),
        trained=sum(p.numel() for p in generator.parameters() if p.requires_grad),
        block=max(_blocks(generator)),
        gaussians=made,
        flops=flops,
        both=both,
        saved=two - one,
        saved_recomputed=two_recomputed - one_recomputed,
        recomputed=again - both,
        copies=2 * one - two,
        # Input, views with depth, targets, noise; cameras are small beside them.
        sample=4 * (4 * pixels * (1 + views + config.targets) + views * (pixels + math.prod(latent))),
        pixels=pixels * (1 + views),
    )


def _blocks(model: nn.Module) -> list[int]:
    """Parameters of each module that configs/accelerate/fsdp.yaml splits by itself."""
    kinds = yaml.safe_load(FSDP.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    return [sum(p.numel() for p in m.parameters()) for m in model.modules() if type(m).__name__ in kinds]


def _pass(generator: Generator) -> tuple[int, int, int, int]:
    """FLOPs forward, and backward too, bytes kept in between, and Gaussians of a sample."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        made, kept = _forward(generator)
        flops = counter.get_total_flops()
        torch.stack([getattr(made, f.name).sum() for f in fields(Gaussians)]).sum().backward()
    generator.zero_grad(set_to_none=True)
    return flops, counter.get_total_flops(), kept, len(made)


def _forward(generator: Generator, batch: int = 1) -> tuple[Gaussians, int]:
    """What comes out, in bfloat16, and the bytes kept for the backward pass."""
    c = generator.config
    noise, image = torch.empty(batch, *c.latent_shape), torch.empty(batch, 4, c.size, c.size)
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
    with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        made = generator(noise, cameras, image)
    return made, sum(kept.values())


def state_bytes(counted: Counted, split: str, gpus: int) -> float:
    """Bytes a GPU holds of weights, gradients, AdamW and average, and of what travels between GPUs.

    The network is split by "DDP", "FSDP2", "ZeRO-2" or "ZeRO-3".
    """
    P, T, live = counted.parameters, counted.trained, counted.block
    if split == "DDP":  # float32: weights, gradients, moments, average; reduction buckets; bfloat16 copies
        return 4 * P + T * (4 + 8 + 4 + (4 if gpus > 1 else 0)) + counted.copies
    if split == "FSDP2":  # two blocks at a time are whole
        return (4 * P + T * (4 + 8 + 4)) / gpus + 2 * live * (4 + 4 + 2)
    # Rajbhandari et al. 2020, table 1, with the average beside the optimiser's float32 weights.
    optimizer = T * (4 + 8 + 4) / gpus
    if split == "ZeRO-2":
        return 2 * P + 2 * T / gpus + optimizer
    return 2 * (P + T) / gpus + optimizer + 2 * live * (2 + 2)


def hours(
    counted: Counted, gpus: int, utilisation: float, recompute: bool = False, samples: int = PICTURES * EPOCHS
) -> float:
    """Hours for all epochs over all pictures, forward and backward."""
    flops = counted.both + (counted.recomputed if recompute else 0)
    return samples * flops / (gpus * PEAK * utilisation) / 3600


def utilisation(name: str, counted: Counted) -> float:
    """Share of the peak that was measured, of the network alone."""
    batch, milliseconds, _ = MEASURED[name]
    return counted.both * batch / (milliseconds / 1e3) / PEAK


def working_set(counted: Counted) -> float:
    """Bytes that the measured batch needs: what is kept, float32 weights and gradients, bfloat16 copies."""
    batch = MEASURED[counted.name][0]
    return batch * counted.saved + 4 * (counted.parameters + counted.trained) + counted.copies


# Lines of the tables with a column for each network.
COUNTED: dict[str, Callable[[Counted], str]] = {
    "parameters, millions": lambda c: f"{c.parameters / 1e6:,.1f}",
    "of them trained, millions": lambda c: f"{c.trained / 1e6:,.1f}",
    "Gaussians": lambda c: f"{c.gaussians:,}",
    "forward, GFLOP a sample": lambda c: f"{c.flops / 1e9:,.1f}",
    "forward and backward, GFLOP": lambda c: f"{c.both / 1e9:,.1f}",
    "kept for the backward pass, GB a sample": lambda c: f"{c.saved / GB:.3f}",
    "the same with gradient_checkpointing": lambda c: f"{c.saved_recomputed / GB:.3f}",
    "FLOPs that costs, share": lambda c: f"{c.recomputed / c.both:.0%}",
    "to the GPU, MB a sample": lambda c: f"{c.sample / 1e6:.2f}",
    "train_batch_size": lambda c: str(c.batch),
    "to the GPU, MB a step and GPU": lambda c: f"{c.batch * c.sample / 1e6:.1f}",
    "checkpoint, GB": lambda c: f"{c.checkpoint / GB:.2f}",
}
RAN: dict[str, Callable[[Counted], str]] = {
    "batch": lambda c: str(MEASURED[c.name][0]),
    "milliseconds": lambda c: str(MEASURED[c.name][1]),
    "share of the bfloat16 peak": lambda c: f"{utilisation(c.name, c):.1%}",
    "peak memory, GB": lambda c: str(MEASURED[c.name][2]),
    "counted for that batch, GB": lambda c: f"{working_set(c) / GB:.1f}",
}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_network(head: str, lines: dict[str, Callable[[Counted], str]], found: list[Counted]) -> str:
    rows = [[label, *(text(c) for c in found)] for label, text in lines.items()]
    return _table([head, *(c.name for c in found)], rows)


def _hours(c: Counted, gpus: list[int], usual: int, samples: int) -> list[list[str]]:
    """Hours at the measured share of the peak, where there is one, and at the target's."""
    measured = [(utilisation(c.name, c), "measured")] if c.name in MEASURED else []
    return [
        [
            f"{c.name} at {share:.0%}, {said}",
            *(f"{hours(c, count, share, samples=samples):,.2f}" for count in gpus),
            f"{hours(c, usual, share, recompute=True, samples=samples):,.2f}",
        ]
        for share, said in (*measured, (TARGET, "target"))
    ]


def page(
    found: list[Counted],
    whole: str = "base",
    gpus: list[int] = GPUS,
    pictures: int = PICTURES,
    epochs: int = EPOCHS,
) -> str:
    """docs/scale.md: a column each for networks, and the memory and checkpoint of the one named `whole`."""
    usual = 8 if 8 in gpus else gpus[-1]  # of the columns that which gradient checkpointing is shown for
    base = next(c for c in found if c.name == whole)
    named = [f"{count:,} GPU{'s' * (count > 1)}" for count in gpus]
    memory = [
        [split, *(f"{state_bytes(base, split, count) / GB:.2f}" for count in gpus)]
        for split in ("DDP", "FSDP2", "ZeRO-2", "ZeRO-3")
    ]
    ran = [c for c in found if c.name in MEASURED]
    seconds, read = base.checkpoint / DISK, base.batch * STORED * base.pixels
    rate = PEAK * TARGET / (base.batch * base.both)  # steps a second
    wall = [row for c in found for row in _hours(c, gpus, usual, pictures * epochs)]
    return TEMPLATE.read_text(encoding="utf-8").format(
        counted=_by_network("", COUNTED, found),
        measured=_by_network("network alone, forward and backward", RAN, ran),
        whole=whole,
        memory=_table(["split", *named], memory),
        wall=_table(["hours", *named, f"{usual}, gradient_checkpointing"], wall),
        pictures=pictures,
        epochs=epochs,
        peak=PEAK / 1e12,
        target=TARGET,
        disk=DISK / GB,
        seconds=seconds,
        stored=STORED,
        read=read / 1e6,
        speed=read * rate / 1e6,
        usual=named[gpus.index(usual)],
        all_speed=usual * read * rate / 1e6,
        interval=INTERVAL,
        share=2 * seconds / (INTERVAL * base.batch * base.both / (PEAK * TARGET)),
    )


def scale_command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; default: standard output.")
    ] = None,
    gpus: Annotated[list[int], typer.Option(min=1, help="Number of GPUs; may be repeated.")] = GPUS,
    pictures: Annotated[int, typer.Option(min=1, help="In the data set.")] = PICTURES,
    epochs: Annotated[int, typer.Option(min=1, help="Over it.")] = EPOCHS,
    config: Annotated[
        str, typer.Option(help="Whose memory to count: a name in configs/distill, or a file of your own.")
    ] = "base",
) -> None:
    """Count what a distillation costs."""
    count(config)  # first: one's own may be wrong, and the others take half a minute
    names = [*CONFIGS, *([config] if config not in CONFIGS else []), COMPACT]
    text = page([count(name) for name in names], config, gpus, pictures, epochs)
    if output is None:
        print(text, end="")
        return
    write_text(output, text)


main = command_line(scale_command, "scale", needs_words=False)

if __name__ == "__main__":
    raise SystemExit(main())
