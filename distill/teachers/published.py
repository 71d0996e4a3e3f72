"""Teachers in the layout that they are published in: a folder of parts, each with a config and safetensors.

Found by name, hub id, revision or path, and loaded with diffusers and transformers; no code of theirs is run.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dd3g.command.progress import quiet_libraries
from dd3g.diffusion import Schedule
from dd3g.errors import UserError, first_line
from dd3g.hub_models import HUB_MODELS, PIPELINE, HubModel, commit_of, is_whole, listed
from dd3g.nn.blocks import KERNELS, AttentionKernel, use_kernel
from dd3g.nn.checkpoint import check_options
from dd3g.nn.multiview_unet import MultiViewUNet, MultiViewUNetConfig

INDEX = "model_index.json"
AGAIN = "copy or fetch it again"
_PARTS = ("unet", "vae", "text_encoder")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")  # of one file of several


@dataclass(frozen=True)
class Source:
    """A folder in the published layout, and what is known of it."""

    folder: Path  # where it lies
    name: str  # hub id, or the folder's own name
    revision: str | None  # commit of the hub; None for a folder of another origin
    licence: str  # of the weights
    notice: str = ""  # what a user must know of the licence

    @property
    def about(self) -> dict[str, str | None]:
        """What the index of quadruples, and the card of what is trained from them, say."""
        about = {"source": self.name, "revision": self.revision, "licence": self.licence}
        return about | ({"notice": self.notice} if self.notice else {})


def find_source(name: str | Path) -> Source | None:
    """The folder of a published teacher; fetched where it is not on this machine.

    Args:
        name: a name of `dd3g models list` or a hub id `owner/name`, with `@revision` for another one than the
            newest, or a folder, which may be that of a model in the hub's cache.

    Returns:
        None when it is none of these; a folder counts when it holds a model_index.json, or a part `unet`.

    Raises:
        UserError: when the hub does not give it, or the folder's model_index.json cannot be read.
    """
    path = Path(name).expanduser()
    if (main := path / "refs/main").is_file():  # a model's own folder in the hub's cache
        path = path / "snapshots" / main.read_text().strip()
    if path.is_dir():
        if not any((path / part).exists() for part in (INDEX, "unet")):
            return None
        read_json(path / INDEX)
        known = next(
            (m for m in HUB_MODELS.values() if m.repo.replace("/", "--") in str(path.resolve())), None
        )
        if known:
            if known.notice:
                print(f"warning: {known.repo}: {known.notice}", file=sys.stderr)
            return source_of(known, path)
        return Source(path, path.resolve().name, commit_of(path), _licence(path))
    model = hub_model(str(name))
    if model is None:
        return None
    try:
        return source_of(model, model.fetch())
    except UserError as error:
        raise UserError(f"{name}: no such folder, and {error}") from error


def source_of(model: HubModel, folder: Path) -> Source:
    """A model of the hub in the folder of its cache."""
    return Source(folder, model.repo, commit_of(folder), model.licence or _licence(folder), model.notice)


def hub_model(name: str) -> HubModel | None:
    """A model of the hub, listed or not, by name or `owner/name`, with `@revision` where one is named."""
    repo, _, revision = name.partition("@")
    if (known := listed(name)) or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        return known
    files = tuple(f"{part}/*.safetensors" for part in (*_PARTS, "*_encoder"))
    return HubModel(repo, files, 0, "", "teacher", revision=revision or "main", needs=PIPELINE)


def _licence(folder: Path) -> str:
    """The licence in the front matter of a folder's README.md; "unknown" when there is none."""
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(folder / "README.md") or {}).get("license")
    except Exception:  # no card, or one that is not readable as YAML
        found = None
    return ", ".join(found) if isinstance(found, list) else str(found or "unknown")


def choose_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The number format of the weights; auto takes float16 on CUDA, as published, and float32 elsewhere.

    Raises:
        UserError: for another name, and for float16 on the CPU, which has no kernels for it.
    """
    kind = torch.device(device).type
    if name == "auto":
        return torch.float16 if kind == "cuda" else torch.float32
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"precision {name!r} is unknown: give auto, float32, bfloat16 or float16")
    if name == "float16" and kind == "cpu":
        raise UserError("precision float16 needs a GPU: give float32 or bfloat16 on the CPU")
    return getattr(torch, name)


def choose_attention(teacher: Any, name: str) -> None:
    """Let a teacher's U-Net attend by "sdpa", torch's own, or by "xformers".

    Raises:
        UserError: for another name, and where xformers is not installed or does not run on the device.
    """
    if name not in KERNELS:
        raise UserError(f"attention {name!r} is unknown: give {' or '.join(KERNELS)}")
    use_kernel(teacher, name)
    if name == "sdpa":
        return
    weight = next(teacher.parameters())
    q = torch.zeros(1, 1, 8, 64, device=weight.device, dtype=weight.dtype)
    try:
        next(m for m in teacher.modules() if isinstance(m, AttentionKernel))(q, q, q)
    except Exception as error:  # not there, or no kernel for this device
        use_kernel(teacher, "sdpa")
        raise UserError(
            f"attention xformers cannot be used here ({first_line(error)}): install xformers for your torch "
            "and GPU, or leave the option out: PyTorch's own attention serves"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a teacher's folder.

    Raises:
        UserError: when there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy or fetch the teacher's folder again, whole") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: {AGAIN}")
    return found


def weights_files(folder: Path) -> tuple[list[Path], str | None]:
    """The safetensors files of a part, and the variant that their names give, as diffusers calls it.

    A part may lie in one file or, with an index, in several, and in several variants, such as number formats;
    the one without a name of its own comes first.

    Raises:
        UserError: when there is no such file, or one was not downloaded whole.
    """
    found = sorted(folder.glob("[!.]*.safetensors"))  # not ._NAME, which macOS leaves beside a copy
    of_variant: dict[tuple[str, ...], list[Path]] = {}
    for path in (f for f in found if not _SHARD.search(f.name)):
        of_variant.setdefault(tuple(path.name.split(".")[1:-1]), []).append(path)
    for index in sorted(folder.glob("[!.]*.safetensors.index*.json")):
        of_variant.setdefault(tuple(index.name.split(".")[3:-1]), [index])
    variant = min(of_variant, key=lambda v: (len(v), v), default=())
    files = of_variant.get(variant, [])
    if len(files) != 1:
        raise UserError(_no_weights(folder, found))
    if files[0].suffix == ".json":
        table = read_json(files[0]).get("weight_map")
        names = set(table.values()) if isinstance(table, dict) else set()
        if not names or not all(isinstance(n, str) and n == Path(n).name for n in names):
            raise UserError(f"{files[0]} names no files of weights: {AGAIN}")
        files = [folder / n for n in sorted(names)]
    for file in files:
        _check_file(file)
    return files, ".".join(variant) or None


def _no_weights(folder: Path, found: list[Path]) -> str:
    if found:
        return f"{folder} must hold one safetensors file or an index, and has {len(found)} without: {AGAIN}"
    if any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")):
        return (
            f"{folder} must hold its weights as safetensors, and has pickles, which are not read: fetch a "
            "revision with safetensors, or convert it where you trust its author, by `from_pretrained` and "
            "`save_pretrained` of the library that config.json names"
        )
    return f"{folder} must hold its weights as safetensors, and has none: {AGAIN}"


def _check_file(file: Path) -> None:
    try:
        with open(file, "rb") as stream:
            start = stream.read(40)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {AGAIN}") from error
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` there")
    if not is_whole(file):
        raise UserError(f"{file} is not a complete safetensors file: {AGAIN}")


def load_schedule(folder: Path, prediction: str, **changes: Any) -> Schedule:
    """The noise levels of a teacher's folder, with changes of its options.

    Raises:
        UserError: when the file does not describe levels, or is of a network that predicts something else.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path) | changes
    # A file that is not of this teacher would give other levels without a word.
    found = config.get("prediction_type", "epsilon")
    if found != prediction:
        raise UserError(f"{path} says prediction_type {found!r}, this teacher's is {prediction!r}: {AGAIN}")
    for name in () if config.get("trained_betas") else ("beta_schedule", "beta_start", "beta_end"):
        if config.get(name) is None:  # diffusers would take its own default
            raise UserError(f"{path} has no {name}: {AGAIN}")
    try:
        return Schedule.from_config(config)
    except Exception as error:  # whatever a wrong option leads to in diffusers
        raise UserError(f"{path} describes no noise levels ({first_line(error)}): {AGAIN}") from error


def load_unet(folder: Path, dtype: torch.dtype) -> MultiViewUNet:
    """The multi-view U-Net of a part's folder.

    Raises:
        UserError: when its config does not describe one, or its tensors are others.
    """
    config = {k: v for k, v in read_json(folder / "config.json").items() if not k.startswith("_")}
    known = MultiViewUNetConfig.__dataclass_fields__
    check_options(folder, config, known)
    files, _ = weights_files(folder)
    try:
        state = {name: tensor for path in files for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder} holds no complete safetensors files ({error}): {AGAIN}") from error
    if "image_embed.proj_in.weight" in state:
        config["image_dim"] = state["image_embed.proj_in.weight"].shape[1]
    try:
        with torch.device("meta"):
            unet = MultiViewUNet(MultiViewUNetConfig(**config))
    except Exception as error:  # whatever a wrong option leads to in torch
        raise UserError(
            f"{folder / 'config.json'} describes no network ({first_line(error)}): {AGAIN}"
        ) from error
    own = unet.state_dict()
    wrong = sorted(set(own) ^ set(state)) or sorted(k for k in own if own[k].shape != state[k].shape)
    if wrong:
        raise UserError(
            f"{files[0]} does not fit its config: {len(wrong)} tensors differ, first {wrong[0]!r}; take both "
            "from one folder"
        )
    unet.load_state_dict({k: v.to(dtype) for k, v in state.items()}, assign=True)
    return unet


def load_part(kind: str, folder: Path, dtype: torch.dtype) -> Any:
    """A part whose class is the library's, `library.Class`, with all of its weights.

    Raises:
        UserError: when it cannot be loaded, or tensors are missing.
    """
    library, name = kind.split(".")
    try:
        cls = getattr(importlib.import_module(library), name)
    except ImportError as error:
        raise UserError(
            f"{folder} needs {error.name}: get the extra 'train' by pip install 'dd3g[train]'"
        ) from error
    _, variant = weights_files(folder)
    read_json(folder / "config.json")  # transformers would take its defaults where there is none
    keys: dict[str, Any] = {"torch_dtype" if library == "diffusers" else "dtype": dtype}
    try:
        with quiet_libraries():
            part, info = cls.from_pretrained(
                str(folder),
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **keys,
            )
    except Exception as error:  # each library raises errors of its own
        raise UserError(f"{folder} cannot be loaded as {name} ({first_line(error)})") from error
    missing = sorted(set(info["missing_keys"]) | {str(m) for m in info.get("mismatched_keys", ())})
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors of a {name}, first {missing[0]!r}")
    return part
