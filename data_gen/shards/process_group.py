"""The processes that make one dataset: which of them this one is, and how they wait for each other."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dd3g.errors import UserError
from dd3g.processes import from_launcher

if TYPE_CHECKING:
    import torch


_GROUPS: list[Any] = []  # of processes that wait for each other


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that make one dataset."""

    rank: int = 0  # 0 … world - 1
    world: int = 1  # number of processes on all machines
    local: int = 0  # number of this process on its machine, or, where that is not known, its rank
    together: bool = True  # whether one launch started them all, so that they can wait for each other

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UserError(f"rank {self.rank} of {self.world}: ranks count from 0 to world - 1")

    @classmethod
    def find(cls, rank: int | None = None, world: int | None = None) -> ProcessGroup:
        """What accelerate or torchrun put into the environment, unless both numbers are given.

        Raises:
            UserError: for one number without the other, a rank outside the world, or an environment that a
                launcher would not leave.
        """
        if rank is not None and world is not None:
            # Such processes may share a machine; on machines of their own with one GPU it is the same.
            return cls(rank, world, rank, together=world == 1)
        if rank is not None or world is not None:
            raise UserError("--rank and --world belong together: give both, or use accelerate launch")
        group = cls(from_launcher("RANK"), from_launcher("WORLD_SIZE"), from_launcher("LOCAL_RANK"))
        for name in ("MASTER_ADDR", "MASTER_PORT") if group.world > 1 else ():
            if not os.environ.get(name):
                raise UserError(
                    f"WORLD_SIZE is {group.world} but {name} is not set: use accelerate launch or torchrun, "
                    "or give --rank and --world"
                )
        from_launcher("MASTER_PORT")
        return group

    def device(self, name: str) -> torch.device:
        """Where this process computes; with "auto" and "cuda", those of one machine share its GPUs evenly.

        A GPU becomes the current one, so that mattes and libraries that ask for no device go there too.

        Raises:
            UserError: when there is no such device.
        """
        import torch

        from dd3g.nn.checkpoint import find_device

        if name in ("auto", "cuda") and torch.cuda.is_available():
            # By its number: every process that asks for just "cuda" takes memory of the first.
            name = f"cuda:{self.local % torch.cuda.device_count()}"
        device = find_device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    def wait(self) -> None:
        """Return when every process of the launch has come here; at once when there is no other."""
        if self.world == 1 or not self.together:
            return
        import torch.distributed as dist

        if not dist.is_initialized():
            _end_with_parent()
            dist.init_process_group("gloo", timeout=timedelta(minutes=10))
            # Not the GPUs' backend, which gives up after minutes: the slowest rank may need days more.
            _GROUPS.append(dist.new_group(timeout=timedelta(days=60)))
        dist.barrier(_GROUPS[-1])

    def leave(self) -> None:
        """Tell the others that this process is done with them."""
        if _GROUPS:
            import torch.distributed as dist

            _GROUPS.clear()
            dist.destroy_process_group()


def _end_with_parent() -> None:
    """Die when the launcher is killed, or the next launch would meet this process at its shards."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
