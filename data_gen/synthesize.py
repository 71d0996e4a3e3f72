"""Prompts to shards of RGBA pictures.

accelerate launch -m data_gen synthesize --config configs/data_gen/pixart.yaml prompts=P.jsonl output=SET
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from data_gen.config import SynthesizeConfig
from data_gen.factory import run
from data_gen.index import missing_sentence
from data_gen.job import Draw, Job, Workshop
from data_gen.progress import Progress
from data_gen.ranks import Ranks
from data_gen.storage import Storage
from dd3g.configuration import launch
from dd3g.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from data_gen.prompt_lists import Prompt

SHOWN = 20  # lines left out that are named one by one


def synthesize(
    config: SynthesizeConfig, ranks: Ranks | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Make a set of pictures, or what is not there of it yet.

    Args:
        config: the set.
        ranks: which process this is; None: the only one.
        progress: is told how far it is; None: nobody is.

    Returns:
        The report of `data_gen.factory.run`.

    Raises:
        UserError: for unusable prompts, model, place or options.
    """
    ranks = ranks or Ranks()
    for name in ("prompts", "output"):
        if not getattr(config, name):
            raise UserError(f"{name} is not set: give {name}=…, or set it in the --config file")
    prompts = _prompts(config.prompts, quiet=ranks.rank > 0)

    @contextmanager
    def workshop() -> Iterator[Workshop]:
        from data_gen.mattes import MattePool
        from data_gen.pictures import load_model

        model = load_model(config.model, ranks.device(config.device))

        def draw(batch: list[Draw]) -> Sequence[Image.Image]:
            return model.draw([d.prompt.text for d in batch], [d.seed for d in batch])

        matte = "own alpha" if model.has_alpha else config.matte.model
        about = {"model": model.name, "licence": model.licence, "matte": matte, "size": config.matte.size}
        with MattePool(config.matte) as pool:
            if not model.has_alpha:
                pool.warm()
            yield Workshop(draw, pool.submit, about)

    job = Job(
        Storage(config.output),
        prompts,
        {"prompts": prompts_fingerprint(prompts)} | config.options(),
        workshop,
        config.filters,
        config.seed,
        config.shard_size,
        config.batch_size,
        config.attempts,
        config.device,
    )
    return run(job, ranks, progress or Progress(show=False))


def prompts_fingerprint(prompts: Sequence[Prompt]) -> str:
    """Number and hash of prompts; any other text, id or order gives another."""
    sha = hashlib.sha256()
    for prompt in prompts:
        sha.update(f"{prompt.id} {prompt.text}\n".encode())
    return f"{len(prompts)} prompts {sha.hexdigest()[:16]}"


def _prompts(path: str, quiet: bool) -> list[Prompt]:
    from data_gen.prompt_lists import prompts_from, read_prompts

    if path.endswith(".jsonl"):
        return read_prompts(path)

    skipped: list[tuple[int, str]] = []
    prompts = prompts_from(path, lambda line, why: skipped.append((line, why)))
    if not quiet:
        for line, why in skipped[:SHOWN]:
            print(f"warning: {path}, line {line} is left out: it {why}", file=sys.stderr)
        if len(skipped) > SHOWN:
            print(f"warning: {path}: {len(skipped) - SHOWN} more lines are left out", file=sys.stderr)
    return prompts


WAITING = 3  # exit code


def run_config(config: SynthesizeConfig) -> int:
    """Make the set and tell about it; returns the exit code.

    0: done; 3: all is well, but other ranks are not done, and the same command must be started again when
    they are.
    """
    ranks, report = launched(partial(synthesize, config), config.rank, config.world, show=not config.json)
    if ranks.rank == 0 or not ranks.together:
        print(json.dumps(report) if config.json else sentence(report))
    return WAITING if report["waiting"] else 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return launch(run_config, SynthesizeConfig, argv, "dd3g data synthesize")


def launched(
    work: Callable[[Ranks, Progress], dict[str, Any]], rank: int | None, world: int | None, show: bool
) -> tuple[Ranks, dict[str, Any]]:
    """Do the work as the rank that was named or that the launcher tells; returns that and its report."""
    ranks = Ranks.find(rank, world)
    try:
        return ranks, work(ranks, Progress(ranks.rank == 0 and show))
    finally:
        ranks.leave()


def sentence(report: dict[str, Any]) -> str:
    """What a run of `data_gen.factory.run` came to, for people."""
    if report["waiting"]:
        return f"{report['drawn']} pictures more in {report['output']}; it waits for {report['waiting']}"
    if "pictures" not in report:
        return f"the set in {report['output']} is complete; rank 0 writes its index"
    found = f"{report['pictures']} of {report['asked']} pictures in {report['shards']} shards in "
    missing = missing_sentence(report["missing"])
    return f"{found}{report['output']} ({report['seconds']} s){'; ' + missing if missing else ''}"
