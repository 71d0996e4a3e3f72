"""distill/train.py under FSDP without GPUs: torchrun --nproc_per_node 2 tests/stand_ins/fsdp_on_cpu.py …"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

CONFIG = Path(__file__).parents[2] / "configs/accelerate/fsdp.yaml"
NAMES = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}


def pretend() -> None:
    """Make accelerate split models among CPU processes, as configs/accelerate/fsdp.yaml says."""
    # What accelerate launch does with the file.
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for key, value in yaml.safe_load(CONFIG.read_text())["fsdp_config"].items():
        os.environ[NAMES.get(key, key.upper())] = (
            str(value).lower() if isinstance(value, bool) else str(value)
        )

    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True)
    # accelerate offers FSDP to GPUs only, though torch runs it anywhere.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def tell_units(path: str) -> None:
    """Let each FSDP model write down its parts: name, kind, and the share of parameters that are split."""
    from accelerate import Accelerator
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    prepare = Accelerator.prepare

    def told(self, *args, **options):
        made = prepare(self, *args, **options)
        if self.is_main_process:
            rows = []
            for name, module in made[0].named_modules():
                if isinstance(module, FSDPModule):
                    own = list(module.parameters())
                    share = sum(isinstance(p, DTensor) for p in own) / len(own)
                    kind = type(module).__name__.removeprefix("FSDP")
                    rows.append(f"{name or '.'} {kind} {share}\n")
            Path(path).write_text("".join(rows))
        return made

    Accelerator.prepare = told


def main() -> int:
    pretend()
    if "SPLIT" in os.environ:
        tell_units(os.environ["SPLIT"])

    from dd3g.command.configuration import launch
    from distill.train import DistillConfig, run

    return launch(run, DistillConfig)


if __name__ == "__main__":
    sys.exit(main())
