"""Prompts to shards of RGBA pictures.

accelerate launch -m data_gen synthesize --config configs/data_gen/pixart.yaml prompts=P.jsonl output=SET
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_gen.filters.mattes import MatteConfig
from data_gen.filters.rules import FilterConfig
from data_gen.picture_models.protocol import ModelConfig
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend, flat_options
from data_gen.shards.generate import generate_shards, run
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from dd3g.command.progress import Progress, print_first
from dd3g.command.setting import check_ranges, setting
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint, folder_fingerprint

if TYPE_CHECKING:
    from PIL import Image

    from data_gen.prompts.lists import Prompt

SHOWN = 20  # lines left out that are named one by one


@dataclass
class SynthesizeConfig:
    """From prompts to shards of RGBA pictures."""

    aliases: ClassVar[dict[str, str]] = {"size": "matte.size"}
    configs: ClassVar[str] = "data_gen"

    prompts: str = setting("", "file that `dd3g data prompts` wrote, or your own list")
    output: str = setting("", "folder or URL of a bucket prefix")
    seed: int = setting(0, "of the run; a picture's follows from it, its prompt and the attempt")
    shard_size: int = setting(1000, "prompts per shard", 1, 100_000)
    batch_size: int = setting(8, "pictures drawn at once", 1)
    attempts: int = setting(4, "tries per prompt", 1, 100)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps; auto gives each process its own GPU")
    rank: int | None = setting(None, "of this process, where no launcher sets it; with world")
    world: int | None = setting(None, "number of processes that make the set")
    json: bool = setting(False, "print the report as JSON")
    model: ModelConfig = field(default_factory=ModelConfig)
    matte: MatteConfig = field(default_factory=MatteConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        check_ranges(self)

    def options(self) -> dict[str, Any]:
        """What decides the pictures, flat: `{"seed": 0, "model.path": …}`.

        A folder counts by what is in it: it may be moved, but not trained on while a dataset is made.
        """
        flat = flat_options(self)
        if (folder := Path(self.model.path).expanduser()).is_dir():
            flat["model.path"] = f"a folder with fingerprint {folder_fingerprint(folder)}"
        return flat


def synthesize(
    config: SynthesizeConfig, group: ProcessGroup | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Make a dataset of pictures, or what is not there of it yet; by default alone, and without a bar.

    Returns:
        The report of `data_gen.shards.generate.generate_shards`.

    Raises:
        UserError: for unusable prompts, model, place or options.
    """
    group = group or ProcessGroup()
    for name in ("prompts", "output"):
        if not getattr(config, name):
            raise UserError(f"{name} is not set: give {name}=…, or set it in the --config file")
    prompts = _prompts(config.prompts, quiet=group.rank > 0)
    hashed = fingerprint(*(f"{prompt.id} {prompt.text}\n" for prompt in prompts))  # and their order

    @contextmanager
    def backend() -> Iterator[PictureBackend]:
        from data_gen.filters.mattes import MattePool
        from data_gen.picture_models.pipelines import load_model

        model = load_model(config.model, group.device(config.device))

        def draw(batch: list[DrawRequest]) -> Sequence[Image.Image | str]:
            return model.draw([d.prompt.text for d in batch], [d.seed for d in batch])

        matte = "own alpha" if model.has_alpha else config.matte.model
        about = {"model": model.name, "licence": model.licence, "matte": matte, "size": config.matte.size}
        with MattePool(config.matte) as pool:
            if not model.has_alpha:
                pool.warm()
            yield PictureBackend(draw, pool.submit, about)

    spec = DatasetSpec(
        Storage(config.output),
        prompts,
        {"prompts": f"{len(prompts)} prompts {hashed}"} | config.options(),
        backend,
        config.filters,
        config.seed,
        config.shard_size,
        config.batch_size,
        config.attempts,
        config.device,
    )
    return generate_shards(spec, group, progress or Progress(show=False))


def _prompts(path: str, quiet: bool) -> list[Prompt]:
    from data_gen.prompts.lists import prompts_from, read_prompts

    if path.endswith(".jsonl"):
        return read_prompts(path)
    prompts, skipped = prompts_from(path)
    if not quiet:
        lines = [f"warning: {path}, line {line} is left out: it {why}" for line, why in skipped]
        print_first(lines, SHOWN, f"warning: {path}: {{}} more lines are left out")
    return prompts


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code of `data_gen.shards.generate.run`."""
    return run(synthesize, SynthesizeConfig, "dd3g data synthesize", argv)
