"""Two processes of a script as torchrun starts them, forked from one that has imported torch for both.

python tests/stand_ins/forked_run.py SCRIPT [WORDS]
"""

import runpy
import sys
from pathlib import Path
from uuid import uuid4

import accelerate  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def run(script, *words):
    sys.argv = [script, *words]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    config = LaunchConfig(
        1, 1, 2, run_id=str(uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork",
        max_restarts=0,
    )  # fmt: skip
    elastic_launch(config, run)(*sys.argv[1:])
