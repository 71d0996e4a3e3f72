"""Networks on disk: where weights are, folders of config.json and model.safetensors, the device they go to.

Folders are written whole or not at all, and read without pickle.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dd3g.errors import UserError, first_line
from dd3g.io.atomic import replacing

POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PARTS = "model{suffix}.safetensors"
FETCHED = [CONFIG, "model*.safetensors", INDEX]  # of a repository on the hub
SHIPPED = Path(__file__).parent.parent / "weights"
CARD = """---
library_name: dd3g
pipeline_tag: image-to-3d
---
One picture to 3D Gaussians in one pass: `dd3g.Generator.from_pretrained("{repo}").generate("picture.png")`.
"""
Config = TypeVar("Config")
Model = TypeVar("Model")


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
    advice = f"shipped are {', '.join(shipped())}, or give a folder or a hub id"
    if not isinstance(name, str | Path) or not str(name).strip():
        raise UserError(f"{name!r} names no weights; {advice}")
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
            folder = snapshot_download(
                name, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=FETCHED
            )
            return Path(folder)
        except Exception as error:  # the hub client raises a family of its own for network, rights and names
            reason = first_line(error)
            raise UserError(f"{name}: no such folder, and the hub did not give it ({reason})") from error
    raise UserError(f"{name}: no such weights; {advice}")


def find_device(name: str) -> torch.device:
    """The device of that name, after it has answered.

    Args:
        name: auto (CUDA when there is one, else the CPU), cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: for another name, or a device that is not there or does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = {"cpu": torch.cpu, "cuda": torch.cuda, "mps": torch.backends.mps}
    try:
        device = torch.device(name)
        backend = known[device.type]
    except (RuntimeError, KeyError) as e:
        raise UserError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:1 or mps") from e
    advice = "give --device cpu, in Python device='cpu', or leave it out"
    if not backend.is_available():
        raise UserError(f"torch finds no {device.type} device on this machine: {advice}")
    try:
        torch.zeros(1, device=device)
    except RuntimeError as e:
        raise UserError(f"the device {name!r} does not work ({first_line(e)}): {advice}") from e
    return device


def save_folder(
    folder: str | Path,
    module: nn.Module,
    config: dict[str, Any],
    dtype: torch.dtype | None = None,
    file_bytes: int | None = None,
) -> Path:
    """Write a model folder; an existing file of the same name is replaced only once the new one is complete.

    Args:
        folder: where config.json and model.safetensors go.
        module: the model.
        config: everything needed to build it again; JSON types.
        dtype: stored type of floating tensors; None keeps them, float16 halves what ships.
        file_bytes: most bytes of a file; a larger model gets several, in the hub's layout.

    Raises:
        UserError: when the folder cannot be written or the disk is full; what was there before stays.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = Path(folder)
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous().clone()
        for name, tensor in module.state_dict().items()
    }
    parts = split_torch_state_dict_into_shards(
        state, filename_pattern=PARTS, max_shard_size=file_bytes or sys.maxsize
    )
    try:
        with contextlib.ExitStack() as stack:
            for name, members in parts.filename_to_tensors.items():
                part = stack.enter_context(replacing(folder / name))
                save_file({n: state[n] for n in members}, part, metadata={"format": "pt"})
            if parts.is_sharded:
                index = {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}
                stack.enter_context(replacing(folder / INDEX)).write_text(json.dumps(index, indent=2) + "\n")
            stack.enter_context(replacing(folder / CONFIG)).write_text(json.dumps(config, indent=2) + "\n")
        (folder / (WEIGHTS if parts.is_sharded else INDEX)).unlink(missing_ok=True)  # of a model before
    except SafetensorError as error:
        raise UserError(f"cannot write {folder / WEIGHTS}: {error}; free some space") from error
    return folder


def read_config(folder: str | Path, *kinds: str) -> dict[str, Any]:
    """Read config.json of a model folder and check that it describes one of `kinds` ("generator", …)."""
    kind = " or ".join(kinds)
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        # The folder of a run, or one of its checkpoints.
        beside = [Path(folder) / "model", Path(folder).parent / "model"]
        meant = next((f"give {f}" for f in beside if (f / CONFIG).is_file()), "")
        advice = meant or f"a {kind} folder holds {CONFIG} and {WEIGHTS}"
        raise UserError(f"{folder}: no {CONFIG} there; {advice}") from error
    except OSError as error:
        raise UserError(_unreadable(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); copy the checkpoint again") from error
    if not isinstance(config, dict) or config.get("kind") not in kinds:
        found = config.get("kind") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{path}: describes {found!r}, not a dd3g {kind}; give a folder made by this project")
    return config


def build(
    folder: str | Path,
    config: dict[str, Any],
    config_class: Callable[..., Config],
    model_class: Callable[[Config], Model],
) -> Model:
    """Make the model that config.json describes; its weights are still to be loaded.

    All of the config but "kind" are options of its class, some of whose fields may be dataclasses too.

    Raises:
        UserError: an option that `config_class` does not have, or values of which no model can be made.
    """
    kinds = get_type_hints(config_class)
    check_options(folder, config, kinds)
    options = {k: v for k, v in config.items() if k != "kind"}
    for name, value in options.items():
        may_be = get_args(kinds[name]) or (kinds[name],)
        for section in may_be:
            none = value is None and type(None) in may_be
            if isinstance(section, type) and is_dataclass(section) and not none:
                options[name] = build(folder, value, section, lambda made: made)
    try:
        # Its random start is overwritten: nobody's numbers should depend on it, nor it on anybody's mode.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            return model_class(config_class(**options))
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{folder}: {CONFIG} does not build a {config.get('kind', 'model')} ({error}); "
            "copy the checkpoint again"
        ) from error


def check_options(folder: str | Path, config: Any, known: Iterable[str]) -> None:
    """Refuse a config that is not a table, or has options other than "kind" and `known`.

    An option that is passed over would make another model than the one that was saved.
    """
    if not isinstance(config, dict):
        raise UserError(f"{folder}: {CONFIG} has {config!r} where options must be; copy the checkpoint again")
    unknown = sorted(set(config) - {"kind", *known})
    if unknown:
        raise UserError(
            f"{folder}: {CONFIG} has options that this version does not know ({', '.join(unknown)}); "
            "use the version of dd3g that wrote it"
        )


def load_weights(folder: str | Path, module: nn.Module, without: str = "") -> None:
    """Fill `module` from model.safetensors; every tensor must be there with its shape, in any float type.

    Tensors of the file whose names begin with `without` are passed over.
    """
    path = Path(folder) / WEIGHTS
    tensors = read_tensors(path)
    state = {name: t for name, t in tensors.items() if not (without and name.startswith(without))}
    try:
        wrong = sorted(name for names in module.load_state_dict(state, strict=False) for name in names)
    except RuntimeError as error:
        wrong = sorted(re.findall("size mismatch for (.+?):", str(error))) or [first_line(error)]
    if wrong:
        raise UserError(
            f"{path}: does not fit its config: {len(wrong)} tensors differ, first {wrong[0]!r}; "
            "take config.json and model.safetensors from the same checkpoint"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, or of the files that its index beside it names.

    Raises:
        UserError: when a file is missing, damaged, or of another kind.
    """
    index = path.with_name(INDEX)
    if not path.exists() and index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
            files = [path.with_name(Path(name).name) for name in sorted(names)]  # never outside the folder
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{index}: not readable ({error}); copy the checkpoint again") from error
        return {name: tensor for file in files for name, tensor in _read_file(file).items()}
    return _read_file(path)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        path.open("rb").close()  # says what is wrong; to safetensors every file it can't open is missing
    except FileNotFoundError as error:
        pickles = sorted(
            p.name for p in path.parent.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}
        )
        hint = "the copy is not whole; copy or fetch the folder again"
        if pickles:
            hint = f"{', '.join(pickles)} is a pickle and is never read; convert the weights to safetensors"
        raise UserError(f"{path}: missing: {hint}") from error
    except OSError as error:
        raise UserError(_unreadable(path, error)) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as stream:
            pointer = stream.read(len(POINTER)) == POINTER
        if pointer:
            raise UserError(f"{path} is a pointer of Git LFS: run `git lfs pull`") from error
        raise UserError(
            f"{path}: not a complete safetensors file ({error}); copy the checkpoint again"
        ) from error


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
