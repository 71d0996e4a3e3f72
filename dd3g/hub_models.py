"""Published models of other projects on the hub: which files, how large, under which licence.

They lie in the hub's own cache, where other programs find them too. Weights, JSON and tokenizer text are
fetched, never code; what is on disk is found without asking the hub.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dd3g.errors import UserError, first_line
from dd3g.fingerprint import file_sha256

TEXT = ("*.json", "tokenizer/*.txt", "README.md")  # beside the weights
# Of these, what a teacher in parts and its captions cannot do without.
PIPELINE = ("model_index.json", "scheduler/scheduler_config.json")
TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt")
COPY = "copy the folder from another machine and give its path instead of the name to --teacher or --weights"


@dataclass(frozen=True)
class HubModel:
    """A model of the hub."""

    repo: str  # `owner/name`
    files: tuple[str, ...]  # patterns of its files of weights; each must match one
    size: int  # bytes of all that is fetched, about
    licence: str  # of the weights, as their page or their authors name it
    purpose: str  # what it is used for
    # Digests of files, where they are known; they are checked after the download
    sha256: Mapping[str, str] = field(default_factory=dict)
    # Branch, tag or commit. The commit that was fetched is the name of the folder in the cache
    revision: str = "main"
    notice: str = ""  # what a user must know of the licence
    needs: tuple[str, ...] = ()  # files beside the weights and the config.json of each part with weights

    def path(self) -> Path | None:
        """The folder in the hub's cache, or None when it is not there or not whole; never asks the hub."""
        folder = self._snapshot()
        return None if folder is None or any(self._faults(folder)) else folder

    def _snapshot(self) -> Path | None:
        try:
            return Path(_download(self, offline=True))
        except Exception:  # the hub's client raises a family of its own for what is not there
            return None

    def _faults(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Files of a folder of this model that are not there or not whole, and which of the two."""
        needed = [folder / name for name in self.needs]
        for pattern in self.files:
            weights = sorted(folder.glob(pattern)) or [folder / pattern]
            needed += weights + [piece for path in weights for piece in _pieces(path)]
            needed += [path.parent / "config.json" for path in weights if path.parent != folder]
        for path in dict.fromkeys(needed):
            if not path.is_file():  # a link of the hub's cache may lead nowhere
                yield path, "is missing"
            elif not is_whole(path):
                yield path, f"is damaged or cut short, at {path.stat().st_size:,} bytes"

    def fetch(self) -> Path:
        """Download what is missing, saying how much and under which licence, and check it.

        Raises:
            UserError: the hub does not give it, HF_HUB_OFFLINE forbids to ask, or a file is another one than
                expected.
        """
        from huggingface_hub import constants

        if self.notice:
            print(f"warning: {self.repo}: {self.notice}", file=sys.stderr)
        if (folder := self.path()) is None:
            size = f"{self.size / 1e6:,.0f} MB" if self.size else "of unknown size"
            what = f"{self.repo}, {size}, licence {self.licence or 'unknown'}"
            there = self._snapshot()
            faults = list(self._faults(there)) if there else []
            state = " ".join(map(str, faults[0])) if faults else "it is not on this machine"
            if constants.HF_HUB_OFFLINE:
                raise UserError(
                    f"{what}: {state}, and HF_HUB_OFFLINE forbids fetching it: unset it once, or {COPY}"
                )
            print(f"fetching {'again' if faults else 'once'}: {what}", file=sys.stderr, flush=True)
            try:
                for path, fault in faults:
                    print(f"warning: {path} {fault}", file=sys.stderr, flush=True)
                    for place in {path.resolve(), path}:  # what it has, the hub's client takes for whole
                        place.unlink(missing_ok=True)
                folder = Path(_download(self, offline=False))
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:  # disk full, no permission
                    raise UserError(
                        f"{self.repo} could not be stored in the hub's cache ({error.strerror}): "
                        "free some space, or point HF_HOME at another disk"
                    ) from error
                raise UserError(
                    f"the hub did not give {self.repo} ({first_line(error)}): check the network, or {COPY}"
                ) from error
            for path, fault in self._faults(folder):
                raise UserError(
                    f"{path} {fault}, even after fetching it: {self.repo} is not in the "
                    f"expected layout; {COPY}"
                )
        for name, digest in self.sha256.items():
            check_digest(folder / name, digest)
        return folder


def _pieces(path: Path) -> list[Path]:
    """What makes the weights of a part together with its file NAME-00001-of-00003.safetensors."""
    found = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\..+)", path.name)
    if not found:
        return []
    stem, count, end = found.groups()
    index = "*.safetensors.index*.json"
    pieces = [path.with_name(f"{stem}-{i:05d}-of-{count}{end}") for i in range(1, int(count) + 1)]
    return pieces + (list(path.parent.glob(index)) or [path.with_name(index)])


def is_whole(path: Path) -> bool:
    """Whether a file of safetensors is as long as it says, a JSON file can be read, and others hold anything.

    Weights themselves are not read.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np"):
                return True
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        return path.stat().st_size > 0
    except Exception:  # safetensors has errors of its own
        return False


def check_digest(path: Path, sha256: str) -> None:
    """Check a file that was downloaded.

    Raises:
        UserError: when it is another one, or missing.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): fetch the model again") from error
    if found != sha256:
        raise UserError(
            f"{path} has sha256 {found[:16]}…, expected {sha256[:16]}…: delete it and fetch the model again"
        )


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache; None for any other folder."""
    found = re.search("/snapshots/([0-9a-f]{40})$", folder.resolve().as_posix())
    return found[1] if found else None


def _download(model: HubModel, offline: bool) -> str:
    from huggingface_hub import snapshot_download

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return snapshot_download(
        model.repo, revision=model.revision, allow_patterns=[*TEXT, *model.files], local_files_only=offline
    )


UNET = "unet/diffusion_pytorch_model.safetensors"
_SD = ("text_encoder/*.safetensors", "unet/*.safetensors", "vae/*.safetensors")
_CROPS = tuple(f"feature_extractor_{part}/preprocessor_config.json" for part in ("vae", "clip"))
HUB_MODELS = {
    "imagedream": HubModel(
        "ashawkey/imagedream-ipmv-diffusers",
        ("image_encoder/*.safetensors", *_SD),
        3_990_000_000,
        "OpenRAIL",
        "teacher: four views of a pictured object",
        {UNET: "28d8b241a54125fa0a041c1818a5dcdb717e6f5270eea1268172acd3ab0238e0"},
        needs=PIPELINE + TOKENIZER,
    ),
    "mvdream": HubModel(
        "ashawkey/mvdream-sd2.1-diffusers",
        _SD,
        2_590_000_000,
        "OpenRAIL",
        "teacher: four views of what a caption describes",
        needs=PIPELINE + TOKENIZER,
    ),
    "zero123plus": HubModel(
        "sudo-ai/zero123plus-v1.2",
        ("vision_encoder/*.safetensors", *_SD),
        5_580_000_000,
        "CC-BY-NC-4.0",
        "teacher: six views of a pictured object, on grey",
        notice="its licence, CC-BY-NC-4.0, forbids commercial use, also of what is made or trained with it",
        needs=PIPELINE + _CROPS,
    ),
    "zero123plus-v1.1": HubModel(
        "sudo-ai/zero123plus-v1.1",
        ("vision_encoder/*.safetensors", *_SD),
        3_850_000_000,
        "OpenRAIL",
        "likewise, an earlier one whose licence is free",
        needs=PIPELINE + _CROPS,
    ),
    "zero123plus-white": HubModel(
        "TencentARC/InstantMesh",
        ("diffusion_pytorch_model.bin",),
        3_460_000_000,
        "Apache-2.0",
        "U-Net for zero123plus: its views on white",
        notice="it was tuned from zero123plus v1.2, whose licence, CC-BY-NC-4.0, forbids commercial use",
    ),
    "lgm": HubModel(
        "ashawkey/LGM",
        ("model_fp16_fixrot.safetensors",),
        830_126_160,
        "MIT (of its code)",
        "a teacher's four views to Gaussians",
        {"model_fp16_fixrot.safetensors": "744d6324656342c64f871308e73db97f0eb51858d94329b30090e986a6d050ab"},
    ),
}


def listed(name: str) -> HubModel | None:
    """A model of `HUB_MODELS` by its name there or its hub id; None for others.

    `@revision` behind it, a branch, tag or commit, asks for another one than the newest.

    Raises:
        UserError: when nothing follows the @.
    """
    name, at, revision = name.partition("@")
    if at and not revision:
        raise UserError(f"{name}@ names no revision: give a branch, tag or commit, or leave the @ out")
    model = HUB_MODELS.get(name) or next((m for m in HUB_MODELS.values() if m.repo == name), None)
    # Digests are of the newest revision that was seen.
    return replace(model, revision=revision, sha256={}) if model and revision else model
