"""JSON that is read in parts: the same values as at once, and little memory."""

import json
import random
import tracemalloc

import pytest

from dd3g.errors import UserError
from dd3g.pose.detection import long_json
from dd3g.pose.detection.long_json import Items, read_json
from dd3g.pose.detection.reading import read_frames


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch):
    for name, value in {"SMALL": 0, "MANY": 2, "FIELDS": 4, "CHUNK": 3}.items():
        monkeypatch.setattr(long_json, name, value)


def made_up(draw, depth=0):
    """Any JSON, with numbers and words that a part may end in."""
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind > 6:
        return [made_up(draw, depth + 1) for _ in range(draw.randrange(6))]
    if kind == 6:
        return {f"{i}Ä": made_up(draw, depth + 1) for i in range(draw.randrange(7))}
    return [None, True, -1.25e-17, 10 ** draw.randrange(20), 'a\\"]}, ä€😀\n', draw.random()][kind]


def whole(value):
    """Of what was read in parts."""
    if isinstance(value, Items):
        assert len(value) > (4 if value.names else 2)
        items = [whole(item) for item in value]
        assert items[-1] == whole(value[-1]) and items[1:3] == [whole(item) for item in value[1:3]]
        return dict(zip(value.names, items, strict=True)) if value.names else items
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    return value


@pytest.mark.parametrize("seed", range(60))
def test_parts_are_what_is_read_at_once(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    monkeypatch.setattr(long_json, "CHUNK", draw.randrange(1, 40))
    value = made_up(draw)
    for options in ({}, {"ensure_ascii": False}, {"indent": 3}, {"separators": (",", ":")}):
        for encoding in ("utf-8", "utf-8-sig"):
            (tmp_path / "a.json").write_text(json.dumps(value, **options) + "\n", encoding)
            assert whole(read_json(tmp_path / "a.json")) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "[", "[1", "[1,", "[1,]", "[1 2]", '{"a"', '{"a":', '{"a" 1}', '{"a": 1,}', "{1: 1}", "[1]]",
     "[1] 2", "nul", '["a', "1.", "[1.]", "[-]", '{"a": [1, 2, 3}'],
)  # fmt: skip
def test_what_is_no_json_is_none_in_parts(tmp_path, text):
    with pytest.raises(ValueError):
        json.loads(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_a_file_that_changes_is_told_from_a_broken_one(tmp_path):
    (tmp_path / "a.json").write_text("[[1], [2], [3]]")
    items = read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("")
    with pytest.raises(UserError, match="was changed while it was read"):
        items[1]


def long_files(frames):
    """Videos of two people, in each form that a file of many frames may have."""
    ids, flat = range(frames), [round(100 + 7.001 * i, 3) if i % 3 else 0.5 for i in range(51)]
    points = [flat[i : i + 2] for i in range(1, 51, 3)]
    person = {"keypoints": points, "keypoint_scores": flat[::3], "bbox": [1.0, 2.0, 3.0, 4.0]}
    entry = {"category_id": 1, "keypoints": [*flat[1:], 0.5], "score": 2.9}
    return {
        "mmpose": [{"frame_id": i, "instances": [person] * 2} for i in ids],
        "alphapose": [entry | {"image_id": f"{i}.jpg"} for i in ids for _ in range(2)],
        "alphapose, by name": {f"{i}.jpg": {"bodies": [{"joints": entry["keypoints"]}] * 2} for i in ids},
        "coco data set": {
            "annotations": [entry | {"image_id": 70 + i} for i in ids for _ in range(2)],
            "images": [{"id": 70 + i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in ids],
        },
        "vitpose": {"keypoints": [{"1": points, "2": points} for _ in ids], "skeleton": None},
        "ours": {"layout": "coco-17", "frames": [{"people": [person] * 2} for _ in ids]},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", long_files(0))
def test_the_memory_that_a_long_file_takes(tmp_path, monkeypatch, name):
    """As objects it takes 4,000 to 6,000 bytes for each person in each frame."""
    for constant, value in {"MANY": 64, "FIELDS": 64, "CHUNK": 2**14}.items():
        monkeypatch.setattr(long_json, constant, value)
    most = []
    for frames in (200, 1200):
        (tmp_path / f"{frames}.json").write_text(json.dumps(long_files(frames)[name]))
        tracemalloc.start()
        found = read_frames(tmp_path / f"{frames}.json", "clip")
        assert len(found) == frames and all(len(found[i].points) == 2 for i in range(0, frames, 50))
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (most[1] - most[0]) / (2 * 1000) < 400
