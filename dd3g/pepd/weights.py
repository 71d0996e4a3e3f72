"""Where weights are: with the package, in a folder, or on the hub."""

from __future__ import annotations

from pathlib import Path

from dd3g.errors import UserError, first_line
from dd3g.nn.checkpoint import CONFIG, INDEX, WEIGHTS

SHIPPED = Path(__file__).parent.parent / "weights"
CARD = """---
library_name: dd3g
pipeline_tag: image-to-3d
---
One picture to 3D Gaussians in one pass: `dd3g.Generator.from_pretrained("{repo}").generate("picture.png")`.
"""


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json") if '"generator"' in p.read_text())


def find_weights(
    name: str | Path, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> Path:
    """Folder of a shipped name, a local folder, or a hub id (downloaded as safetensors and JSON only).

    Args:
        name: of the weights.
        revision: branch, tag or commit of a hub id.
        token: for the hub; None takes the one that `hf auth login` stored.
        cache_dir: where the hub's files are kept; None is the hub's own folder.

    Raises:
        UserError: when there are none, the hub does not give them, or a revision is asked of what is here.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise UserError(
            f"{name!r} names no weights; shipped are {', '.join(shipped())}, or give a folder or a hub id"
        )
    path = Path(name)
    try:
        if revision is not None and ((SHIPPED / name / CONFIG).is_file() or path.exists()):
            raise UserError(
                f"{name} is on this machine and has no revision {revision!r}: leave it out, or give a hub id"
            )
        if (SHIPPED / name / CONFIG).is_file():
            return SHIPPED / name
        if path.is_dir():
            return path
        if path.exists():
            if path.name in (CONFIG, WEIGHTS):
                return path.parent
            raise UserError(
                f"{name}: weights are a folder with {CONFIG} and {WEIGHTS}; other files, pickles above all, "
                "are never read: give such a folder"
            )
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(
                    name,
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    allow_patterns=[CONFIG, "model*.safetensors", INDEX],
                )
            )
        except Exception as error:  # the hub client raises a family of its own for network, rights and names
            reason = first_line(error)
            raise UserError(f"{name}: no such folder, and the hub did not give it ({reason})") from error
    raise UserError(
        f"{name}: no such weights; shipped are {', '.join(shipped())}, or give a folder or a hub id"
    )
