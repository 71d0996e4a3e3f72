"""What a run was started with, and what a later session of it changes."""

from __future__ import annotations

from typing import Any

# Where a run lies, how long it is, how it is watched and how fast: these change no step that is made.
FREE = {
    *("output_dir", "resume_from_checkpoint", "allow_changed", "max_train_steps", "max_minutes"),
    *("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "logging_steps", "report_to"),
    *("tracker_project_name", "logging_dir", "dataloader_num_workers", "dataloader_prefetch_factor"),
    *("use_cpu", "max_bad_samples", "gradient_checkpointing", "torch_compile", "ddp_timeout"),
    *("push_to_hub", "hub_model_id", "validation_renders", "unpacked_dir"),
}
LENGTH = ("max_train_steps", "max_minutes")  # these change the rates of what is still to come


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys; sequences are lists, as in JSON."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Options that differ, each as `name old (now new)`; what only one version of the code has is left out.

    Returns:
        Those that make other steps, and the length of the run where that differs.
    """
    old, new = flat(before), flat(now)
    found = {k: f"{k} {old[k]} (now {new[k]})" for k in new if k in old and old[k] != new[k]}
    return [v for k, v in found.items() if k not in FREE], [found[k] for k in LENGTH if k in found]
