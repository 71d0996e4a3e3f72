"""The folder of a diffusers pipeline, local or from the hub: what it holds, and whether it may be loaded.

Nothing in the folder is run: the pipeline's class and those of its parts must come with diffusers or
transformers (or be ours), and weights must be safetensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import warnings
from pathlib import Path
from typing import Any

from data_gen.picture_models.protocol import ModelConfig
from dd3g.errors import UserError, first_line
from dd3g.fingerprint import folder_fingerprint
from dd3g.hub_models import is_whole

INDEX = "model_index.json"
CARD = "README.md"
# Pipelines of this package, which diffusers does not export, by class name.
OWN = {"TinyRgbaPipeline": "data_gen.picture_models.tiny"}
_OWN_LIBRARIES = (*OWN.values(), "data_gen.tiny")  # the second in folders saved before the first moved
_NEEDED = ("prompt", "generator", "output_type", "height", "width")
_VIDEO = ("num_frames", "frames", "video", "video_length")
_WORDS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))  # of a tokenizer
_NAME = re.compile(r"[\w-]+(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors")


def find_folder(config: ModelConfig) -> tuple[Path, str]:
    """The local folder of the pipeline, fetched from the hub when `config.path` is not a folder.

    Returns:
        The folder, and the name for records: the hub id with the commit, or the pipeline's class, the
        folder's name and the fingerprint of what it holds.

    Raises:
        UserError: when there is no such folder or repository, the hub does not answer, or it is no
            text-to-image pipeline; that is found out before any weights are fetched.
    """
    path = Path(config.path).expanduser()
    if path.is_dir():
        kind = read_index(path)["_class_name"]
        return path, f"{kind}/{path.resolve().name}@{folder_fingerprint(path)}"
    if path.exists():
        raise UserError(
            f"{path} is a file, not a pipeline's folder: load it once with diffusers' from_single_file and "
            "write a folder with save_pretrained"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.path):
        raise UserError(f"there is no folder {config.path}, and it is not a hub id (owner/name) either")
    folder = _fetch(config)
    return folder, f"{config.path}@{folder.name[:8]}"


def read_index(folder: Path) -> dict[str, Any]:
    """The checked `model_index.json`: component -> [library, class], with `_class_name`.

    Raises:
        UserError: when it is missing or damaged, or asks for code that is not ours, diffusers' or
            transformers'.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        parts = {k: v for k, v in index.items() if _is_part(v)}
        name = index["_class_name"]
    except FileNotFoundError as e:
        raise UserError(f"{folder} {_what_else(folder)}: give the folder of a diffusers pipeline") from e
    except (ValueError, KeyError, AttributeError, OSError) as e:
        raise UserError(f"{folder / INDEX} is damaged ({e}): copy or download the pipeline again") from e
    foreign = [
        f"{part} ({library}.{kind})" for part, (library, kind) in parts.items() if not _known(library, kind)
    ]
    if not isinstance(name, str) or foreign:
        what = ", ".join(foreign) or f"the pipeline class {name}"
        raise UserError(
            f"{folder} needs code that does not come with diffusers: {what}; such code is never run"
        )
    if any(library == "transformers" for library, _ in parts.values()) and not installed("transformers"):
        raise UserError(
            f"{folder} needs transformers for its text encoder: get the extra 'data' by "
            "pip install 'dd3g[data]'"
        )
    pipeline_class(name)
    return index


def pipeline_class(name: str) -> type:
    """The text-to-image pipeline class called `name`.

    Raises:
        UserError: when diffusers has none of that name, or it does not make pictures from texts alone.
    """
    if name in OWN:
        # Diffusers takes parts only from modules that are imported already.
        return getattr(importlib.import_module(OWN[name]), name)
    import diffusers

    cls = getattr(diffusers, name, None)
    if not inspect.isclass(cls) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise UserError(
            f"diffusers {diffusers.__version__} has no pipeline class {name!r}: a newer diffusers may have it"
        )
    if reason := _unsuited(cls):
        raise UserError(f"{name} is not a text-to-image pipeline ({reason}): give one that draws from texts")
    return cls


def _unsuited(cls: Any) -> str:
    """Why a pipeline does not make pictures from texts alone; "" where it does."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as TEXT_TO_IMAGE

    parameters = inspect.signature(cls.__call__).parameters
    required = [
        k
        for k, p in parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and k not in ("self", "prompt")
    ]
    pictures = [k for k in parameters if _is_picture(k)]
    # Some text-to-image pipelines take reference pictures as well; diffusers lists those.
    if cls in TEXT_TO_IMAGE.values() and not any("control" in k for k in (*pictures, cls.__name__.lower())):
        pictures = []
    missing = [k for k in _NEEDED if k not in parameters]
    reasons = {
        "it makes videos": any(k in parameters for k in _VIDEO),
        f"it also needs {', '.join(required or pictures)}": bool(required or pictures),
        f"its call takes no {', '.join(missing)}": bool(missing),
        "it loads a second model": bool(getattr(cls, "_load_connected_pipes", False)),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def check_parts(
    folder: Path, index: dict[str, Any], variant: str = "", leave_out: tuple[str, ...] = ()
) -> None:
    """Check that every part of the pipeline is there, with its weights in safetensors.

    Raises:
        UserError: naming what is missing, and what to do.
    """
    for part in (k for k, v in index.items() if _is_part(v) and k not in leave_out):
        here = folder / part
        if not here.is_dir():
            raise UserError(
                f"{folder} lacks the folder {part} that its {INDEX} names: copy or download it again"
            )
        converted = not (here / "spiece.model").exists() or (here / "tokenizer.json").exists()
        if not converted and not installed("sentencepiece"):
            raise UserError(f"{here} needs sentencepiece to be read: pip install sentencepiece protobuf")
        _check_part(here, variant)


def _check_part(part: Path, variant: str) -> None:
    """Where a file is missing, libraries take their defaults: a network of another shape, or no words."""
    network = (part / "config.json").exists()  # tokenizers and schedulers have none
    weights = sorted(part.glob("[!.]*.safetensors"))
    if weights and not network:
        raise UserError(f"{part / 'config.json'} is missing: copy or download it again")
    if part.name.startswith("tokenizer") and not any(
        all((part / name).exists() for name in names) for names in _WORDS
    ):
        said = ", or ".join(" and ".join(names) for names in _WORDS)
        raise UserError(f"{part} holds no vocabulary ({said}): copy or download it again")
    for file in (*sorted(part.glob("[!.]*.json")), *weights):
        if is_whole(file):
            continue
        with open(file, "rb") as stream:
            pointer = stream.read(40).startswith(b"version https://git-lfs")
        if pointer:
            raise UserError(f"{file} is a Git LFS pointer, not the file: run `git lfs pull` in {part.parent}")
        raise UserError(f"{file} is damaged or cut short: copy or download it again")
    if not network:
        return
    if not weights:
        pickles = any(path.suffix in (".bin", ".ckpt", ".pt") for path in part.iterdir())
        why = "only as pickles, which are never loaded" if pickles else "none at all"
        raise UserError(
            f"{part} has no weights in the safetensors format ({why}): get the pipeline with its "
            "*.safetensors files, or load it with diffusers and write it with save_pretrained"
        )
    variants = {m["variant"] or "" for f in weights if (m := _NAME.fullmatch(f.name))}
    if "" not in variants and variant not in variants:
        has = ", ".join(sorted(variants))
        raise UserError(f"{part} has its weights only in the variant {has}: set model.variant={has}")


def read_licence(folder: Path) -> str:
    """The licence in the front matter of the model card; "unknown", with a warning, when there is none."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        front = metadata_load(folder / CARD) or {}
        licence = front.get("license") or ""
        if licence == "other":
            licence = front.get("license_name") or licence
    except (OSError, ValueError, YAMLError):
        licence = ""
    if not licence:
        warnings.warn(
            f"the licence of {folder.resolve().name} is unknown (its {CARD} names none): set model.licence",
            stacklevel=2,
        )
        return "unknown"
    return ", ".join(licence) if isinstance(licence, list) else str(licence)


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def _fetch(config: ModelConfig) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import constants, errors, hf_hub_download

    revision = config.revision or None
    advice = f"check the name {config.path}"
    try:
        index = hf_hub_download(config.path, INDEX, revision=revision)
        read_index(Path(index).parent)
        try:
            hf_hub_download(config.path, CARD, revision=revision)
        except errors.EntryNotFoundError:
            pass
        keys = {"variant": config.variant} if config.variant else {}
        return Path(DiffusionPipeline.download(config.path, revision=revision, use_safetensors=True, **keys))
    except errors.GatedRepoError as e:
        raise UserError(
            f"{config.path} is gated: accept its licence on its page, then log in with `hf auth login`"
        ) from e
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        raise UserError(f"the hub has no model {config.path}, and there is no such folder: {advice}") from e
    except errors.RevisionNotFoundError as e:
        raise UserError(f"{config.path} has no revision {config.revision!r}") from e
    except errors.RemoteEntryNotFoundError as e:
        raise UserError(f"{config.path} has no {INDEX}: it is not a diffusers pipeline") from e
    except UserError:
        raise
    except Exception as e:  # the hub's client raises what its transport raises
        if isinstance(e, OSError) and e.errno is not None:  # disk full, no permission
            raise UserError(f"{config.path} could not be stored in the hub's cache: {e.strerror}") from e
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{config.path} is not whole on this machine, and HF_HUB_OFFLINE forbids fetching it: "
                "unset it once, or give model.path the folder of a pipeline"
            ) from e
        raise UserError(
            f"{config.path} could not be fetched from the hub ({first_line(e)}): {advice} and the network, "
            "or give the folder of a pipeline on this machine"
        ) from e


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _known(library: str, kind: Any) -> bool:
    """Whether a component's class comes with diffusers or transformers, or is ours."""
    if library in ("diffusers", "transformers", *_OWN_LIBRARIES):
        return isinstance(kind, str)
    import diffusers.pipelines

    # The few that lie beside one pipeline, such as stable_diffusion.StableDiffusionSafetyChecker.
    module = getattr(diffusers.pipelines, library, None)
    return inspect.ismodule(module) and module.__name__.startswith("diffusers.pipelines.")


def _is_picture(parameter: str) -> bool:
    return "image" in parameter and not re.match(r"num_images|(negative_)?ip_adapter", parameter)


def _what_else(folder: Path) -> str:
    """What a folder without a pipeline's index is instead."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("_class_name") or (config.get("architectures") or [config["model_type"]])[0]
        return f"is a single model ({kind}), not a pipeline"
    except (OSError, ValueError, KeyError, AttributeError, IndexError):
        return f"has no {INDEX}"
