"""The command line of data_gen: `python -m data_gen COMMAND`, each command in its own module."""

from __future__ import annotations

import sys
from importlib import import_module

from dd3g.command import print_help
from dd3g.errors import UserError

# Command -> module that holds it, and what it does.
COMMANDS = {
    "prompts": ("data_gen.prompts.generation", "write prompts, one JSON object a line"),
    "synthesize": ("data_gen.synthesize", "prompts to shards of RGBA pictures; resumes where it stopped"),
    "collect": ("data_gen.collect", "pictures that exist already to the same shards"),
    "verify": ("data_gen.reports.verify", "check every picture, count and checksum of a set"),
    "merge": ("data_gen.shards.merge", "several sets to one"),
    "stats": ("data_gen.reports.stats", "a page about a set: counts, histograms, pictures, throughput"),
    "train_tiny": ("data_gen.train_tiny", "train the small picture model for machines without a hub"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code, 2 with one line when something is wrong, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items())
        print_help(f"usage: python -m data_gen COMMAND ...; COMMAND --help explains it\n\n{commands}")
        return 0 if words else 2
    command = words[0].replace("-", "_")
    if command not in COMMANDS:
        print(f"error: no command {words[0]!r}: choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        # Only here: `prompts` and a wrong word must not wait for torch.
        return import_module(COMMANDS[command][0]).main(words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
