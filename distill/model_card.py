"""What a trained generator was made from and how, in a README.md beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dd3g
from dd3g.io.atomic import write_text
from dd3g.nn.checkpoint import CARD
from distill.simulation.generate_shards import teacher_of
from distill.teachers.published import find_source, hub_model, source_of


def write_card(folder: Path, config: Any, step: int) -> None:
    """Write `folder`/README.md for weights of a step of a `DistillConfig`; the hub reads its front matter."""
    sources = {"quadruples": config.quadruples, "renders": config.renders}
    sources["phase 1"] = [config.start.teacher] * bool(config.start.teacher)
    sources["verifier"] = [config.pretrained_teacher_model] * bool(config.objective.implicit)
    trained_on = "\n".join(
        f"- {kind}: `{path}`{made_by(path)}" for kind, paths in sources.items() for path in paths
    )
    options = json.dumps(asdict(config), indent=1)
    text = f"""{CARD.format(repo=config.hub_model_id or folder)}
Step {step} of {config.max_train_steps} of `dd3g train`, version {dd3g.__version__}, on:

{trained_on}

The licences of these data, and of the teacher that made them, hold for the weights too.

```json
{options}
```
"""
    write_text(folder / "README.md", text)


def made_by(path: str) -> str:
    """What is known of a published teacher, or of the one that made a set: its licence, above all."""
    model = None if Path(path).exists() else hub_model(path)
    if Path(path).is_dir() and (source := find_source(path)):
        about = source.about
    elif model and (folder := model.path()):  # where it was loaded from
        about = source_of(model, folder).about
    elif model and model.licence:
        about = {"source": model.repo, "licence": model.licence, "notice": model.notice or None}
    else:
        about = teacher_of(Path(path))
    known = ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)
    return f" ({known})" if known else ""
