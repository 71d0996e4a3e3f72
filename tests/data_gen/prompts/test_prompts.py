from __future__ import annotations

import json
import re
import time
from collections import Counter

import pytest

from data_gen.__main__ import main
from data_gen.prompts.generation import capacity, make_prompts
from data_gen.prompts.grammar import WORDS, Grammar, own_grammar
from data_gen.prompts.lists import (
    Prompt,
    normalise,
    prompt_id,
    prompts_from,
    read_prompts,
    to_jsonl,
)
from dd3g.errors import UserError
from dd3g.io.atomic import write_text


@pytest.fixture(scope="module")
def many() -> list[Prompt]:
    return make_prompts(20_000, seed=3)


@pytest.fixture
def small(tmp_path) -> Grammar:
    """Two groups with 2 and 3 nouns, few enough things to say that all can be said."""
    (tmp_path / "pots.txt").write_text("pot\nred pan\nwooden bowl\n")
    (tmp_path / "cats.txt").write_text("cat\ntiger\n")
    (tmp_path / "kinds.yaml").write_text(
        "styles: photograph, drawing\nviews: front view; front view, slightly from above\n"
        "lights: soft light\nbackgrounds: white background, grey background\ncolours: red, blue\n"
        "substances: wooden\ntints: red\ntinted: plastic\nalone: fresh\nmetals: steel\n"
        "kinds:\n"
        "  cat: {groups: cats, states: 'big, fresh', materials: 'plush {}', plain: 0.5, coloured: false}\n"
        "  pot: {groups: pots, states: 'big, rusty', materials: 'plastic, steel', plain: 0.5}\n"
        "exceptions:\n  pots:\n    '': pan\n"
    )
    return Grammar(tmp_path)


def test_word_lists():
    nouns = own_grammar().nouns
    everything = [n for group in nouns.values() for n in group]
    assert len(everything) >= 1500
    assert {p.stem for p in WORDS.glob("*.txt")} == set(nouns)
    assert Counter(normalise(n) for n in everything).most_common(1)[0][1] == 1
    odd = [n for n in everything if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z]", n) or "  " in n]
    assert not odd
    for group, listed in nouns.items():
        assert len(listed) >= 35, group
        assert list(listed) == sorted(listed, key=str.lower), group


def test_rules_name_what_exists():
    import yaml

    rules = yaml.safe_load((WORDS / "kinds.yaml").read_text())
    grammar = own_grammar()
    named = [g.strip() for kind in rules["kinds"].values() for g in kind["groups"].split(",")]
    assert len(named) == len(set(named))
    for group, rows in rules["exceptions"].items():
        words = {w for n in grammar.nouns[group] for w in n.lower().split()}
        listed = [w for row in rows.values() for w in row.split()]
        assert len(listed) == len(set(listed)), group
        assert set(listed) <= words, group


def test_no_noun_is_another_with_something_said_of_it():
    # Else two nouns could give the same text.
    grammar = own_grammar()
    for group, nouns in grammar.nouns.items():
        for noun in nouns:
            choices = grammar.choices(group, noun)
            for said in (*choices.states, *choices.colours, *choices.materials):
                if said and "{}" not in said:
                    assert f"{said} {noun}" not in nouns, (group, said, noun)


def test_different_and_balanced(many):
    assert len({normalise(p.text) for p in many}) == len({p.id for p in many}) == 20_000
    groups = Counter(p.group for p in many)
    assert max(groups.values()) - min(groups.values()) <= 1
    for group, nouns in own_grammar().nouns.items():
        counts = Counter(p.noun for p in many if p.group == group)
        assert set(counts) == set(nouns)
        assert max(counts.values()) - min(counts.values()) <= 1
    for shares in (Counter(p.style for p in many), Counter(p.view for p in many)):
        assert max(shares.values()) < 1.2 * min(shares.values())
    colours = Counter(c for p in many if (c := p.attribute.split(" ")[-1]) in own_grammar().colours)
    del colours["green"]  # of three kinds
    assert max(colours.values()) < 1.5 * min(colours.values())


def test_prefix_seed_and_ids(many):
    assert make_prompts(777, seed=3) == many[:777]
    assert len({p.id for p in make_prompts(777, seed=4)} & {p.id for p in many[:777]}) < 10
    first = make_prompts(1)[0]
    assert first.id == prompt_id(first.text) == prompt_id(f"  {first.text.upper()}. ")
    assert re.fullmatch("[0-9a-f]{16}", first.id)
    # A change of these changes every set that is under way.
    assert prompt_id("a red fox, front view") == "2c7f3dc507963792"


def test_texts_read_well(many):
    for p in many:
        assert p.noun.removeprefix("pair of ").removeprefix("set of ") in p.text
        assert p.style in p.text and p.view in p.text and "background" in p.text and "in view" in p.text
        assert all(w in p.text for w in p.attribute.split())
        assert all(w in p.text for w in p.material.split())
        assert "  " not in p.text and "{" not in p.text and len(p.text) < 250
        assert not re.search(r"\b(\w+) \1\b", p.text), p.text
        if article := re.search(r" of (an?) (\w)", p.text):
            assert article[1] == "an" or article[2].lower() not in "ai", p.text
    texts = " ".join(p.text for p in many)
    assert " a unicorn" in texts or " unicorn" in texts
    assert " an unicorn" not in texts and " a hourglass" not in texts


def test_materials_fit(many):
    of = {g: {p.material for p in many if p.group == g} for g in own_grammar().nouns}
    assert "wooden" in of["seating"] and "wooden" not in of["cooked_dishes"] | of["mammals"] | of["clothing"]
    assert all("toy" in m or "miniature" in m or not m for m in of["cooked_dishes"])
    assert not any(p.material for p in many if p.noun in ("wooden puzzle", "glass bottle", "stone bridge"))
    # Metal and bare wood are not painted unless that is said; a material's own colour is enough.
    last = {
        m: {p.attribute.split(" ")[-1] for p in many if p.material == m} for m in ("oak", "brass", "plastic")
    }
    colours = set(own_grammar().colours)
    assert last["oak"] and not (last["oak"] | last["brass"]) & colours
    assert len(last["plastic"] & colours) > 8
    assert not any("rusty" in p.attribute and "wood" in p.material for p in many)


def test_everything_can_be_said_once(small):
    # cat, tiger: 3 states, 2 of which go with plush: 5. pot: 3 x 3 plain, 2 x 3 plastic, 3 steel: 18.
    # red pan: neither colour nor material: 3. wooden bowl: 3 x 3 = 9. Scenes: 2 x 2 x 1 x 2 = 8.
    counts = {n: small.choices(g, n).count() for g, nouns in small.nouns.items() for n in nouns}
    assert counts == {"cat": 5, "tiger": 5, "pot": 18, "red pan": 3, "wooden bowl": 9}
    assert capacity(small) == 2 * 8 * min(2 * 5, 3 * 3) == 144
    prompts = make_prompts(144, 1, small)
    assert len({normalise(p.text) for p in prompts}) == 144
    pans = [p for p in prompts if p.noun == "red pan"]
    assert len(pans) == 24 == len({(p.text) for p in pans})
    assert {p.attribute for p in pans} == {"", "big", "rusty"}
    assert any(
        "a pair" not in p.text and "photograph of a big red pan, front view" in p.text for p in prompts
    )
    for count in (145, 0, -1):
        with pytest.raises(UserError, match=f"cannot make {count} prompts: ask for 1 to 144"):
            make_prompts(count, 1, small)
    assert capacity(own_grammar()) > 10_000_000


def test_write_and_read(tmp_path):
    prompts = make_prompts(50)
    path = tmp_path / "deep" / "prompts.jsonl"
    write_text(path, to_jsonl(prompts))
    assert read_prompts(path) == prompts
    assert [p.name for p in path.parent.iterdir()] == ["prompts.jsonl"]
    lines = path.read_text().splitlines()
    bad_lines = {
        "{": "line 51: no prompt",
        '{"id": "a"}': "line 51: no prompt",
        "": "line 51: no prompt",
        '["id"]': "line 51: no prompt",
        '{"id": "a/b", "text": "x"}': "'a/b' is not of letters",
        '{"id": "a", "text": 1}': "is not text",
        lines[6]: "line 51: has the id of line 7",
    }
    for bad, why in bad_lines.items():
        path.write_text("\n".join([*lines, bad, lines[0]]))
        with pytest.raises(UserError, match=why):
            read_prompts(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(path)
    with pytest.raises(UserError, match="No such file"):
        read_prompts(tmp_path / "nowhere")


LIST = [
    b"\xef\xbb\xbfa red chair\r\n", b"\n", b"A  RED chair.\n", b"x" * 10_000 + b"\n", b"bad \xff byte\n",
    "ein gr\u00fcner Frosch\n".encode(), b"   \t\n", b"...!\n", b"nul\x00byte\n", b"a blue lamp",
]  # fmt: skip


def test_users_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"".join(LIST))
    prompts, skipped = prompts_from(path)
    assert [p.text for p in prompts] == ["a red chair", "ein gr\u00fcner Frosch", "a blue lamp"]
    assert [p.id for p in prompts] == [prompt_id(p.text) for p in prompts]
    assert skipped == [
        (2, "is empty"), (3, "repeats line 1"), (4, "is 10000 characters long, more than 1000"),
        (5, "is not UTF-8 (byte 0xff)"), (7, "is empty"), (8, "holds no word"),
        (9, "holds control characters"),
    ]  # fmt: skip
    path.write_text("a red chair\na red chair ")
    assert prompts_from(path) == (prompts[:1], [(2, "repeats line 1")])
    path.write_bytes(b"\n \n\xff\n")
    with pytest.raises(UserError, match=r"list\.txt holds no usable prompt"):
        prompts_from(path)


def test_users_jsonl(tmp_path):
    path = tmp_path / "list.jsonl"
    rows = [
        {"text": "a fox", "noun": "fox", "size": 3},
        {"caption": "an owl"},
        {"prompt": "a cat", "id": "x"},
    ]
    bad = ["[1]", "{", '{"words": "none"}', '{"text": 3}', '{"text": "\\ud800"}']
    path.write_text("\n".join([*map(json.dumps, rows), *bad]))
    prompts, skipped = prompts_from(path)
    assert [(p.text, p.noun) for p in prompts] == [("a fox", "fox"), ("an owl", ""), ("a cat", "")]
    assert [n for n, _ in skipped] == [4, 5, 6, 7, 8]
    assert "is not JSON" in skipped[1][1] and "has no text, prompt or caption" in skipped[2][1]


def test_command(tmp_path, capsys):
    out = tmp_path / "p.jsonl"
    assert main(["prompts", "--count", "60", "--seed", "5", "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prompts"], report["nouns"], report["groups"]) == (60, 60, 48)
    assert read_prompts(out) == make_prompts(60, 5)
    (tmp_path / "list.txt").write_bytes(b"".join(LIST))
    assert main(["prompts", "--from", str(tmp_path / "list.txt"), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "list.txt, line 4: is 10000 characters long" in said.err and said.err.count("skipped") == 7
    assert said.out.startswith("wrote 3 prompts to ") and len(read_prompts(out)) == 3
    for words, why in (
        (["--count", str(10**12)], "ask for 1 to "),
        (["--from", str(tmp_path / "list.txt"), "--count", "4"], "gives 3 prompts"),
        (["--from", str(tmp_path)], "cannot read"),
        (["-o", str(tmp_path)], "it is a folder"),
        (["-o", str(tmp_path / "p.txt")], "let it end in .jsonl"),
        (["--from", str(out)], "is the list itself"),
        (["-o", str(out / "p.jsonl")], "cannot write to the output folder"),
    ):
        assert main(["prompts", "-o", str(out), *words]) == 2
        assert (err := capsys.readouterr().err).startswith("error: ") and why in err and err.count("\n") == 1
    assert len(read_prompts(out)) == 3


def test_fast_enough():
    make_prompts(10)  # reads the words
    start = time.process_time()
    make_prompts(12_000)
    assert time.process_time() - start < 1  # of a CPU: 120,000 take less than 10
