"""The commands of the picture factory: `dd3g data COMMAND`, each in its own module."""

from __future__ import annotations

import sys

from dd3g.command.run import dispatch

# Name -> module with main(argv) -> exit code, and a line about it.
COMMANDS = {
    "prompts": ("data_gen.prompts.generation", "write prompts, one JSON object a line"),
    "synthesize": ("data_gen.synthesize", "prompts to shards of RGBA pictures; resumes where it stopped"),
    "collect": ("data_gen.collect", "existing pictures to the same shards"),
    "objects": ("data_gen.make_objects", "made-up household objects, for those who have no meshes"),
    "render": ("data_gen.render", "meshes to shards of RGBA and depth views"),
    "verify": ("data_gen.reports.verify", "check every picture, count and checksum of a set"),
    "merge": ("data_gen.shards.merge", "several sets to one"),
    "stats": ("data_gen.reports.stats", "a page about a set: counts, histograms, pictures, throughput"),
    "train-tiny": ("data_gen.train_tiny", "train the small picture model for machines without a hub"),
}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return dispatch(COMMANDS, argv, "dd3g data", "Make training pictures, and look after sets of them.")


if __name__ == "__main__":
    sys.exit(main())
