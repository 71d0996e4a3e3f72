"""Meshes to shards of RGBA and depth views: `dd3g data render FOLDER --output RENDERS`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from data_gen.meshes.objects import Item, Options, find_items, mesh_files, render_item
from dd3g.command.progress import Progress
from dd3g.command.run import Json, command_line, say
from dd3g.command.setting import flattened
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.atomic import only_user, write_text
from dd3g.io.shards import Shards, write_shard
from dd3g.processes import map_in_processes, usable_cores


def render_shard(task: tuple[Path, list[Item], Options]) -> tuple[int, list[tuple[str, str]]]:
    """Write one shard; returns views written and (object, reason) of each mesh that could not be drawn."""
    path, items, options = task
    samples, failed, views = [], [], 0
    for item in items:
        try:
            samples.append(render_item(item, options))
            views += len(json.loads(samples[-1]["json"])["azimuth"])
        except Exception as error:  # a stranger's mesh can make a loader fail in any way
            failed.append((item.key, f"{item.found.path}: {error or type(error).__name__}".splitlines()[0]))
    write_shard(path, samples)
    return views, failed


def render_folder(
    folder: Path,
    output: Path,
    options: Options,
    processes: int = 1,
    styles: list[str] | None = None,
    limit: int = 0,
    layout: str = "auto",
) -> dict:
    """Render every object of a folder into shards; shards that exist are kept.

    Returns:
        summary: objects, items, views, shards written and kept, megabytes, seconds, failed {key: reason} and,
        by id, objects that lack files.

    Raises:
        UserError: no meshes, other options or objects than the folder was started with, a damaged shard, a
            full disk, a process that was killed.
    """
    items, missing = find_items(folder, options, styles or [], limit, layout)
    keys = fingerprint("\n".join(item.key for item in items))
    stored = {"styles": styles or [], "limit": limit, "objects": f"{len(items)} items {keys}"}
    size, views = options.per_shard, 0
    shards = {
        output / f"renders-{i // size:05d}.tar": items[i : i + size] for i in range(0, len(items), size)
    }
    failed: dict[str, str] = {}
    with only_user(output):
        _check_same_options(output, asdict(options) | stored | {"mesh files": mesh_files(items)})
        start = time.perf_counter()
        tasks = [(path, part, options) for path, part in shards.items() if not path.exists()]
        with Progress() as progress:
            progress.phase("shards", len(shards), len(shards) - len(tasks))
            for done, bad in map_in_processes(render_shard, tasks, processes):
                views += done
                failed |= dict(bad)
                for key, reason in bad:
                    progress.say(f"skipped {key}: {reason}")
                progress.advance()
        written = Shards([*shards])
        present = {written.key(i) for i in range(len(written))}
    earlier = "could not be drawn in an earlier run"
    return {
        "objects": len({i.found.id for i in items}),
        "items": len(written),
        "views": views,
        "shards": len(tasks),
        "kept_shards": len(shards) - len(tasks),
        "megabytes": round(sum(p.stat().st_size for p in shards) / 1e6, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "output": str(output),
        "failed": missing | {i.key: failed.get(i.key, earlier) for i in items if i.key not in present},
    }


def _check_same_options(output: Path, options: dict) -> None:
    """Store the options, or compare with those that the folder's shards were made with."""
    path = output / "options.json"
    try:
        if path.exists() and any(output.glob("*.tar")):
            # What a folder of an earlier version lacks, it had by default.
            before = asdict(Options(scan_variants=2)) | json.loads(path.read_text())
            changed = [f"{k} {before[k]} -> {v}" for k, v in options.items() if before.get(k, v) != v]
            if changed:
                raise UserError(
                    f"{output} was started with other options ({', '.join(changed)}): use those, or "
                    "another --output"
                )
            return
        write_text(path, json.dumps(options))
    except (ValueError, TypeError) as error:  # no JSON, or no keys with values
        raise UserError(f"{path} is damaged: delete it and run the same command again") from error
    except OSError as error:
        raise UserError(f"cannot write in {output}: {error.strerror or error}") from error


@flattened
def render_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="MESHES",
            help="Folder of .glb, .obj or untextured .npz meshes at any depth, or of a data set.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the shards.")],
    options: Options,
    processes: Annotated[int, typer.Option(min=1, help="CPU processes.")] = usable_cores(),
    limit: Annotated[int, typer.Option(min=0, help="Only the first objects; 0: all.")] = 0,
    layout: Annotated[
        str, typer.Option(help="Layout of the data set, as for `dd3g evaluate`, where it is ambiguous.")
    ] = "auto",
    only_styles: Annotated[str, typer.Option(help="Comma-separated styles of the manifest to keep.")] = "",
    as_json: Json = False,
) -> None:
    """Render a folder of meshes into shards of RGBA and depth; run it again to resume."""
    options = replace(options, scan_variants=options.scan_variants or options.variants)
    styles = [s.strip() for s in only_styles.split(",") if s.strip()]
    if not (options.eval or options.quads or options.free_quads or options.square_quads or options.novel):
        raise UserError("no views asked for: raise --quads, --free-quads, --square-quads or --novel")
    summary = render_folder(folder, output, options, processes, styles, limit, layout)
    failed = summary["failed"]
    if as_json:
        print(json.dumps(summary))
    else:
        rate = f", {summary['views'] / summary['seconds']:.0f} views/s" if summary["seconds"] else ""
        print(
            f"{summary['items']} items of {summary['objects']} objects in {summary['output']} "
            f"({summary['megabytes']} MB; {summary['shards']} shards written, {summary['kept_shards']} kept, "
            f"{summary['views']} views in {summary['seconds']} s{rate}); {len(failed)} failed"
        )
        for key, reason in failed.items():
            say(f"  {key}: {reason}", err=True)
    if failed:
        raise typer.Exit(1)


main = command_line(render_command, "dd3g data render")

if __name__ == "__main__":
    sys.exit(main())
