"""What strangers' files hold: npz and pickles in which no code can run, with the missing key named."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from dd3g.errors import UserError

# What pickled numpy arrays are made of; numpy 1 called its inner package "core".
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    # What trackers fill, with the types that the first of them makes.
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("builtins", "list"),
}
StandIns = Mapping[tuple[str, str], Any]


class _NumpyOnly(pickle.Unpickler):
    def __init__(self, data: bytes, stand_ins: StandIns) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        # Names of Python 2 and numpy 1.
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) in self.stand_ins:
            return self.stand_ins[module, name]
        if (module, name) not in _ALLOWED:
            raise UserError(f"it asks for {module}.{name}, which is code and not numbers; it was not run")
        return super().find_class(module, name)


def safe_unpickle(data: bytes, path: str | Path, stand_ins: StandIns | None = None) -> Any:
    """Python containers, numbers, strings and numpy arrays out of a pickle; anything else is refused.

    Pickles of Python 2 are read as latin-1. `stand_ins` holds, by module and name, what takes the place of
    classes that are not loaded; `path` is for the message.

    Raises:
        UserError: code in it, or damaged.
    """
    try:
        return _NumpyOnly(data, stand_ins or {}).load()
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is not a readable pickle ({error}); get the file again") from error


def read_pickle(path: str | Path, stand_ins: StandIns | None = None) -> Any:
    """`safe_unpickle` of a file."""
    return safe_unpickle(_read(path), path, stand_ins)


def read_npz(path: str | Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Arrays of an npz, those of `names` or all; objects come out if `safe_unpickle` lets them through.

    Raises:
        UserError: no such file, damaged, code in it, or an array missing.
    """
    data = _read(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            there = {name.removesuffix(".npy"): name for name in archive.namelist()}
            wanted = list(there) if names is None else list(names)
            missing = [name for name in wanted if name not in there]
            if missing:
                raise UserError(
                    f"{path} has no {', '.join(map(repr, missing))}; it has {', '.join(there) or 'nothing'}"
                )
            return {name: _array(archive.read(there[name]), path) for name in wanted}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole npz file ({error}); get the file again") from error


def _array(data: bytes, path: str | Path) -> Any:
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    _, _, dtype = (
        npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
    )
    if not dtype.hasobject:
        return np.load(io.BytesIO(data), allow_pickle=False)
    found = safe_unpickle(data[stream.tell() :], path)
    return found.item() if isinstance(found, np.ndarray) and found.shape == () else found


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the name") from error


def read_text(path: str | Path) -> str:
    """A text file, whatever its bytes.

    Raises:
        UserError: no such file.
    """
    return _read(path).decode("utf-8", "replace")


def read_cameras(path: str | Path) -> Any:
    """A JSON file of cameras.

    Raises:
        UserError: no such file, or no JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the cameras {path}: {error}") from error


def tensor(value: Any, shape: tuple[int | None, ...], where: str) -> Tensor:
    """An array or nested lists as float32 tensor of a shape, in which None stands for any length.

    Raises:
        UserError: not numbers, or another shape.
    """
    try:
        found = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} must be an array of numbers: {error}") from error
    if found.ndim != len(shape) or any(b not in (None, a) for a, b in zip(found.shape, shape, strict=True)):
        wanted = ", ".join("N" if n is None else str(n) for n in shape)
        raise UserError(f"{where} must have the shape ({wanted}), but has {found.shape}")
    return torch.from_numpy(found)


def frames_of(keypoints: Any, points: Tensor, where: str) -> Tensor:
    """The keypoints (T, 17, 2) of T poses; where there are more of them, the first.

    Raises:
        UserError: fewer keypoints than poses, or another shape.
    """
    found = tensor(keypoints, (None, 17, 2), where)
    if len(found) < len(points):
        raise UserError(f"{where} has {len(found)} frames for {len(points)} poses")
    return found[: len(points)]


def need(table: Any, keys: Collection[Any], where: str) -> list[Any]:
    """The values of these keys, in order; with none this only makes sure that it is a table.

    Raises:
        UserError: `table` is not a dict, or a key is missing; the message names it and those that are there.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where} must be a table of named values, not {type(table).__name__}")
    missing = [key for key in keys if key not in table]
    if missing:
        there = ", ".join(map(repr, list(table)[:12])) or "nothing"
        raise UserError(f"{where} has no {', '.join(map(repr, missing))}; it has {there}")
    return [table[key] for key in keys]
