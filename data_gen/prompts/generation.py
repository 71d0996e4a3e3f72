"""Prompts for pictures of single objects, from our own grammar or a user's list.

dd3g data prompts --count 120000 --seed 0 -o prompts.jsonl
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from data_gen.prompts.grammar import Grammar, own_grammar
from data_gen.prompts.lists import Prompt, prompt_id, prompts_from, to_jsonl
from dd3g.command.progress import Progress, print_first
from dd3g.command.run import Json, command_line
from dd3g.errors import UserError
from dd3g.io.atomic import check_writable, write_text

COUNT = 120_000
SHOWN = 100  # skipped lines that are named one by one
NAME_STATE, NAME_COLOUR = 0.75, 0.5  # shares of prompts that name one, where the noun allows it
# First words of our nouns and adjectives whose spelling misleads: "a unicorn", "an hourglass".
_CONSONANT = ("uni", "uku", "use", "eu", "one-")
_VOWEL = ("hour", "heir", "honest")


def make_prompts(count: int, seed: int = 0, grammar: Grammar | None = None) -> list[Prompt]:
    """Different prompts, equally many of each group and, within a group, of each noun.

    The first n of a longer list are the list of n with the same seed, which decides order and choices.

    Raises:
        UserError: when the grammar has fewer than `count`.
    """
    grammar = grammar or own_grammar()
    most = capacity(grammar)
    if not 1 <= count <= most:
        raise UserError(f"cannot make {count} prompts: ask for 1 to {most}")
    prompts: list[Prompt] = []
    said: dict[str, Iterator[Prompt]] = {}
    for group, noun in islice(_turns(grammar, seed), count):
        if noun not in said:
            said[noun] = _said(grammar, group, noun, seed)
        prompts.append(next(said[noun]))
    return prompts


def capacity(grammar: Grammar) -> int:
    """How many prompts the grammar gives before the first noun has nothing new to say."""
    rounds = [
        len(nouns) * min(grammar.choices(group, noun).count() for noun in nouns)
        for group, nouns in grammar.nouns.items()
    ]
    return len(rounds) * min(rounds) * math.prod(map(len, grammar.scene))


def _turns(grammar: Grammar, seed: int) -> Iterator[tuple[str, str]]:
    """Each group once a round, each noun once in as many rounds as its group has nouns, in ever new order."""
    rng = random.Random(f"{seed} order")
    groups = list(grammar.nouns)
    waiting: dict[str, list[str]] = {group: [] for group in groups}
    while True:
        rng.shuffle(groups)
        for group in groups:
            if not waiting[group]:
                waiting[group] = list(grammar.nouns[group])
                rng.shuffle(waiting[group])
            yield group, waiting[group].pop()


def _said(grammar: Grammar, group: str, noun: str, seed: int) -> Iterator[Prompt]:
    """Ever new prompts about one noun."""
    c = grammar.choices(group, noun)
    lists = (c.materials, c.states, c.colours, *grammar.scene)
    shape, fits = tuple(map(len, lists)), c.fits.ravel()
    scenes = math.prod(shape[3:])
    rng = random.Random(f"{seed} {noun}")
    used: set[int] = set()

    def some(count: int, share: float) -> int:
        """0 or, with probability `share`, one of 1 .. count - 1."""
        first, second = rng.random(), rng.random()
        return 1 + int(second * (count - 1)) if count > 1 and first < share else 0

    while True:
        material = some(len(c.materials), 1 - c.plain)
        state, colour = some(len(c.states), NAME_STATE), some(len(c.colours), NAME_COLOUR)
        # What does not suit the material is left unsaid.
        colour = colour if c.fits[material, 0, colour] else 0
        state = state if c.fits[material, state, 0] else 0
        look = (material * len(c.states) + state) * len(c.colours) + colour
        index = look * scenes + int(rng.random() * scenes)
        # The next free one, not another draw: this ends even when few are left.
        while index in used or not fits[index // scenes]:
            step = 1 if fits[index // scenes] else scenes - index % scenes
            index = (index + step) % math.prod(shape)
        used.add(index)
        places = map(int, np.unravel_index(index, shape))
        made, adjective, tint, style, view, light, background = (
            x[i] for x, i in zip(lists, places, strict=True)
        )
        thing = with_article(_phrase(noun, adjective, tint, made))
        text = f"{style} of {thing}, {view}, {c.whole}, centred, {light}, {background}"
        attribute = " ".join(w for w in (adjective, tint) if w)
        material_words = " ".join(made.replace("{}", " ").split())
        yield Prompt(prompt_id(text), text, group, noun, attribute, material_words, style, view)


def _phrase(noun: str, state: str, colour: str, material: str) -> str:
    lead, rest = "", noun
    for counter in ("pair of ", "set of "):
        if noun.startswith(counter) and "{}" not in material:
            lead, rest = counter, noun.removeprefix(counter)  # a worn pair of red leather gloves
    made = material.format(rest) if "{}" in material else f"{material} {rest}"
    return " ".join(f"{state} {lead}{colour} {made}".split())


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    word = phrase.lower()
    vowel = word.startswith(_VOWEL) or (word[0] in "aeiou" and not word.startswith(_CONSONANT))
    return f"{'an' if vowel else 'a'} {phrase}"


def prompts_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The jsonl file to write.")] = Path(
        "prompts.jsonl"
    ),
    count: Annotated[
        int | None, typer.Option(min=1, help=f"Number of prompts; default: {COUNT}, or all of --from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of prompts and of their rewriting.")] = 0,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Your own list: text, one per line, or jsonl with text, prompt or caption."
        ),
    ] = None,
    rewrite: Annotated[
        Path | None,
        typer.Option(help="Folder of a transformers language model that puts each prompt in its own words."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts rewritten at once.")] = 16,
    device: Annotated[str, typer.Option(help="Device for --rewrite: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Write prompts for pictures of single objects, one JSON object a line.

    The same seed gives the same prompts, and the first n of a longer list are those of a shorter one.
    """
    start = time.perf_counter()
    # Before any work: a language model may be at it for hours.
    if output.is_dir():
        raise UserError(f"cannot write {output}: it is a folder; give the name of a file")
    if output.suffix != ".jsonl":
        raise UserError(f"-o {output} is written as JSON lines, and read as text: let it end in .jsonl")
    if source is not None and source.resolve() == output.resolve():
        raise UserError(f"-o {output} is the list itself: give another file")
    check_writable(output.parent)
    journal = output.with_name(output.name + ".rewriting")
    skipped: list[tuple[int, str]] = []
    if source is None:
        prompts = make_prompts(count or COUNT, seed)
    else:
        prompts, skipped = prompts_from(source)
        prompts = prompts[:count]
        if count and len(prompts) < count:
            raise UserError(f"{source} gives {len(prompts)} prompts: give no larger --count")
    lines = [f"skipped {source}, line {number}: {why}" for number, why in skipped]
    print_first(lines, SHOWN, "skipped {} more lines; --json names them")
    report = {
        "prompts": len(prompts),
        "groups": len({p.group for p in prompts if p.group}),
        "nouns": len({p.noun for p in prompts if p.noun}),
        "output": str(output),
        "skipped": [{"line": number, "reason": why} for number, why in skipped],
    }
    if rewrite is not None:
        from data_gen.prompts.rewriter import Rewriter, rewrite_prompts

        rewriter = Rewriter(rewrite, seed, batch_size, device)
        with Progress(show=not as_json) as progress:
            progress.phase("prompts rewritten", len(prompts))
            prompts, report["rewritten"] = rewrite_prompts(prompts, rewriter, journal, progress.advance)
    write_text(output, to_jsonl(prompts))
    journal.unlink(missing_ok=True)
    report["seconds"] = round(time.perf_counter() - start, 2)
    if as_json:
        print(json.dumps(report))
        return
    kinds = f" of {report['nouns']} nouns in {report['groups']} groups" if report["nouns"] else ""
    rewritten = f", {report['rewritten']} of them rewritten" if rewrite is not None else ""
    print(f"wrote {len(prompts)} prompts{kinds}{rewritten} to {output} in {report['seconds']:.1f} s")


main = command_line(prompts_command, "dd3g data prompts", needs_words=False)
