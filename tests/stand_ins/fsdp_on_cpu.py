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


def main() -> int:
    pretend()

    from dd3g.configuration import launch
    from distill.train import DistillConfig, run

    return launch(run, DistillConfig)


if __name__ == "__main__":
    sys.exit(main())
