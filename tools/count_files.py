"""How many files of the project does one picture, or one training sample, visit?

    python tools/count_files.py picture assets/lamp.png
    python tools/count_files.py sample RENDERS

Prints each file of the current folder whose functions run, their number, and that of all files imported.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

TRAINING = [
    "quadruples=[]",
    "max_train_steps=1",
    "train_batch_size=1",
    "mixed_precision=no",
    "report_to=none",
]


def travel(journey: str, source: str) -> None:
    """Run the command of a journey in this process."""
    with tempfile.TemporaryDirectory() as folder:
        module = {"picture": "dd3g.infer", "sample": "distill.train"}[journey]
        training = [*TRAINING, f"renders=[{source}]", f"output_dir={folder}"]
        sys.argv = [module, *([source, "-o", folder] if journey == "picture" else training)]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise


def visited(journey: str, source: str) -> list[str]:
    """Files whose functions run, in any thread of this process; of kernels the calls alone are seen."""
    travel(journey, source)  # imports everything
    seen: set[str] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            seen.add(frame.f_code.co_filename)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        travel(journey, source)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return sorted(str(Path(name).relative_to(Path.cwd())) for name in seen if _ours(name))


def _ours(name: str) -> bool:
    return any(Path(name).is_relative_to(Path.cwd() / room) for room in ("dd3g", "distill", "data_gen"))


if __name__ == "__main__":
    files = visited(*sys.argv[1:])
    homes = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    print(*files, sep="\n")
    print(f"{len(files)} files run, {sum(1 for home in homes if _ours(home))} imported")
