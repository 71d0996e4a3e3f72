"""Prompts to shards of RGBA pictures.

accelerate launch -m data_gen synthesize --config configs/data_gen/pixart.yaml prompts=P.jsonl output=SET
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from data_gen.progress import Progress
from data_gen.shards.dataset import DatasetSpec, DrawRequest, PictureBackend
from data_gen.shards.generate import run
from data_gen.shards.index import missing_sentence
from data_gen.shards.options import SynthesizeConfig
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from dd3g.configuration import parse
from dd3g.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from data_gen.prompts.lists import Prompt

SHOWN = 20  # lines left out that are named one by one
USAGE = "python -m data_gen synthesize [--json] [--rank R --world N]"


def synthesize(
    config: SynthesizeConfig, ranks: ProcessGroup | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Make a set of pictures, or what is not there of it yet.

    Args:
        config: the set.
        ranks: which process this is; None: the only one.
        progress: is told how far it is; None: nobody is.

    Returns:
        The report of `data_gen.shards.generate.run`.

    Raises:
        UserError: for unusable prompts, model, place or options.
    """
    ranks = ranks or ProcessGroup()
    for name in ("prompts", "output"):
        if not getattr(config, name):
            raise UserError(f"{name} is not set: give {name}=…, or set it in the --config file")
    prompts = _prompts(config.prompts, quiet=ranks.rank > 0)

    @contextmanager
    def workshop() -> Iterator[PictureBackend]:
        from data_gen.filters.mattes import MattePool
        from data_gen.picture_models.loading import load_model

        model = load_model(config.model, ranks.device(config.device))

        def draw(batch: list[DrawRequest]) -> Sequence[Image.Image]:
            return model.draw([d.prompt.text for d in batch], [d.seed for d in batch])

        matte = "own alpha" if model.has_alpha else config.matte.model
        about = {"model": model.name, "licence": model.licence, "matte": matte, "size": config.matte.size}
        with MattePool(config.matte) as pool:
            if not model.has_alpha:
                pool.warm()
            yield PictureBackend(draw, pool.submit, about)

    job = DatasetSpec(
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
    from data_gen.prompts.lists import prompts_from, read_prompts

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


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code.

    0: done; 2: something is wrong, which one line tells; 3: all is well, but other ranks are not done, and
    the same command must be started again when they are.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        mine, rest = own_options().parse_known_args(words)
        config = parse(rest, SynthesizeConfig, USAGE)
        ranks, report = launched(mine, partial(synthesize, config))
    except (argparse.ArgumentError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ranks.rank == 0 or not ranks.together:
        print(json.dumps(report) if mine.as_json else sentence(report))
    return WAITING if report["waiting"] else 0


def own_options() -> argparse.ArgumentParser:
    """--json, --rank and --world: what is said beside the configuration."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--json", action="store_true", dest="as_json")
    own.add_argument("--rank", type=int)
    own.add_argument("--world", type=int)
    return own


def launched(
    mine: argparse.Namespace, work: Callable[[ProcessGroup, Progress], dict[str, Any]]
) -> tuple[ProcessGroup, dict[str, Any]]:
    """Do the work as the rank that `own_options` or the launcher name; returns that and its report."""
    ranks = ProcessGroup.find(mine.rank, mine.world)
    try:
        return ranks, work(ranks, Progress(ranks.rank == 0 and not mine.as_json))
    finally:
        ranks.leave()


def sentence(report: dict[str, Any]) -> str:
    """What a run of `data_gen.shards.generate.run` came to, for people."""
    if report["waiting"]:
        return f"{report['drawn']} pictures more in {report['output']}; it waits for {report['waiting']}"
    if "pictures" not in report:
        return f"the set in {report['output']} is complete; rank 0 writes its index"
    found = f"{report['pictures']} of {report['asked']} pictures in {report['shards']} shards in "
    missing = missing_sentence(report["missing"])
    return f"{found}{report['output']} ({report['seconds']} s){'; ' + missing if missing else ''}"
