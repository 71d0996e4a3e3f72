"""The card of a set, read as the hub reads it."""

from __future__ import annotations

import pytest
import yaml
from stand_ins.made_up_dataset import Log, dataset_spec

from data_gen.shards.generate import generate_shards
from data_gen.shards.index import card
from data_gen.shards.process_group import ProcessGroup
from dd3g.command.progress import Progress


def index(licences, options):
    made = {"model": {"m": sum(licences.values())}, "licence": licences}
    counts = {"pictures": 3, "asked": 4, "tries": 5, "missing": {"blur": 1}, "rejected": {"blur": 2}}
    return counts | {"made": made, "shards": [{"bytes": 10**6}], "missing_ids": {}, "options": options}


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "see: the page # 3",
        "[a] or {b}",
        "no",
        "'quoted\" | text'",
        "https://x.y/z: a",
        "é 漢",
        "- x" * 60,
    ],
)
def test_any_licence_is_one_text(licence):
    assert front(card(index({licence: 3}, {}))) == {"license": licence, "task_categories": ["image-to-3d"]}
    assert front(card(index({"MIT": 1, licence + ".": 2}, {})))["license"] == ["MIT", licence + "."]


def test_cells_of_the_table_end_where_they_should():
    assert "| licence a \\| b c | 3 |" in card(index({"a | b\nc": 3}, {}))


def test_what_is_only_true_of_drawn_pictures():
    only = ("model they were drawn with", "any picture can be made again")
    assert all(s in card(index({"MIT": 3}, {"seed": 0})) for s in only)
    for options in ({"source": "3 files"}, {"sets": ["a", "b"], "shards": 2}):
        text = card(index({"MIT": 3}, options))
        assert not any(s in text for s in only) and "drawn" not in text
        assert "Every record names the licence of its picture." in text


def test_the_licence_is_known_though_no_picture_passed(tmp_path):
    log = Log(picture=lambda text, seed: "unreadable")
    report = generate_shards(dataset_spec(tmp_path, 20, log), ProcessGroup(), Progress(show=False))
    assert report["pictures"] == 0 and report["made"]["licence"] == {"CC0-1.0": 0}
    text = (tmp_path / "README.md").read_text()
    assert front(text)["license"] == "CC0-1.0" and "| 0 |\n\n" not in text


def test_licences_without_a_picture_are_left_out_beside_others():
    assert front(card(index({"MIT": 3, "unknown": 0}, {})))["license"] == "MIT"
