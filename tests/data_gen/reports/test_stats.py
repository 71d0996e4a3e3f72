"""The page about a set, finished or not, and the figures it shows."""

import json
import re
import shutil
from collections import Counter

import pytest
from stand_ins.unfinished_set import GROUPS, unfinished_set

from data_gen.reports.figures import read_figures, sample_pictures
from data_gen.reports.stats import main, report
from data_gen.shards.storage import Storage
from dd3g.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("stats") / "set"
    unfinished_set(place)
    return place


def test_figures_are_those_of_the_manifests_and_parts(folder):
    manifests = [json.loads((folder / f"pictures-0000{n}.json").read_text()) for n in (0, 1)]
    found = read_figures(Storage(folder))
    pictures = sum(s["count"] for s in manifests)
    rejections = [r for s in manifests for r in s["rejections"]]
    missing = Counter(v for s in manifests for v in s["missing"].values())
    assert pictures + sum(missing.values()) == 40 and missing and rejections
    assert (found.asked, found.shards, found.pictures, found.in_work) == (60, 2, pictures, 3)
    assert (found.done, found.left) == (43, 17)
    assert found.missing == missing
    assert found.rejected == Counter(r["reason"] for r in rejections) + Counter(blur=1)
    assert found.tries == pictures + len(rejections) + 4
    assert found.bytes == sum((folder / s["tar"]).stat().st_size for s in manifests)
    wall = sum(s["seconds"]["wall"] for s in manifests) + 4
    assert found.seconds["wall"] == pytest.approx(wall)
    assert found.hours_left(2) == pytest.approx(17 * wall / 43 / 2 / 3600)
    assert found.bytes_left == pytest.approx((17 * pictures / 40 + 3) * found.bytes / pictures)
    assert [shard for shard, _ in found.speed] == [0, 1] and found.free > 0


def test_groups_add_up(folder):
    found = read_figures(Storage(folder))
    assert set(found.groups) == set(GROUPS)
    assert [found.groups[g].asked for g in GROUPS] == [20, 20, 20]
    assert sum(g.pictures for g in found.groups.values()) == found.pictures
    assert sum(g.missing for g in found.groups.values()) == sum(found.missing.values())
    assert sum(g.tries for g in found.groups.values()) == found.tries - 4  # of the part
    manifest = json.loads((folder / "pictures-00000.json").read_text())
    ids = [r["id"] for r in manifest["rejections"]] + [r["id"] for r in manifest["records"]]
    manifest = json.loads((folder / "pictures-00001.json").read_text())
    ids += [r["id"] for r in manifest["rejections"]] + [r["id"] for r in manifest["records"]]
    assert found.groups["chairs"].tries == sum(int(i, 16) % 3 == 1 for i in ids)


def test_scores_are_all_there(folder):
    found = read_figures(Storage(folder))
    assert set(found.accepted) >= {"coverage", "sharpness", "colourfulness"}
    assert all(len(v) == found.pictures + 3 for v in found.accepted.values())
    assert found.refused["sharpness"].min() <= 0.11 + 1e-6
    assert found.accepted["colourfulness"].max() <= 120 < found.refused["colourfulness"].max()
    percentiles = report(found)["scores"]["sharpness"]
    assert 0 <= percentiles["p1"] <= percentiles["p50"] <= percentiles["p99"] <= 1


def test_sheet_shows_pictures_spread_over_the_shards(folder):
    shown = sample_pictures(Storage(folder), 7)
    assert len(shown) == 7 and all(png.startswith(b"\x89PNG") for png, _ in shown)
    shards = [int(record["id"], 16) // 20 for _, record in shown]
    assert shards == sorted(shards) and set(shards) == {0, 1}
    assert len({record["id"] for _, record in shown}) == 7
    everything = sample_pictures(Storage(folder), 500)
    assert (
        len(everything)
        == len({record["id"] for _, record in everything})
        == read_figures(Storage(folder)).pictures
    )


def test_page_is_whole_and_asks_for_nothing(folder, tmp_path, capsys):
    page = tmp_path / "out" / "page.html"
    assert main([str(folder), "-o", str(page), "--pictures", "6", "--json", "--processes", "4"]) == 0
    figures = json.loads(capsys.readouterr().out)
    html = page.read_text()
    assert "{{" not in html and not re.search(r"(src|href)=.?(http|//|file)", html) and "<script" not in html
    assert html.count("data:image/webp;base64,") == 6
    assert "cups &lt;&amp;&gt;" in html and "cups <&>" not in html and "no group" in html
    for code, count in figures["rejected"].items():
        assert re.search(rf"<th>{code}</th><td>[^<]+</td><td class=n>{count}</td>", html)
    assert html.count("<figcaption><b>") == len(figures["scores"]) and "max_colourfulness 120" in html
    assert figures["hours_left"] == round(read_figures(Storage(folder)).hours_left(4), 3)
    assert "71.7% done" in html and list(tmp_path.joinpath("out").iterdir()) == [page]


def test_a_set_that_has_just_begun_has_a_page_too(folder, tmp_path, capsys):
    begun = tmp_path / "set"
    begun.mkdir()
    for name in ("options.json", "prompts.jsonl"):
        (begun / name).write_bytes((folder / name).read_bytes())
    page = tmp_path / "page.html"
    assert main([str(begun), "-o", str(page), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["asked"], figures["pictures"], figures["left"]) == (60, 0, 60)
    assert figures["hours_left"] is None and figures["bytes_left"] is None
    assert "No shard is finished yet" in page.read_text()


def test_a_bucket_prefix_gives_the_same_figures_but_for_work_in_parts(folder, request):
    bucket = Storage(f"memory://{request.node.name}/set")
    for path in (p for p in folder.iterdir() if p.is_file()):
        bucket.write(path.name, path.read_bytes())
    found, local = report(read_figures(bucket)), report(read_figures(Storage(folder)))
    for name in ("asked", "pictures", "missing", "bytes", "groups", "made"):
        assert found[name] == local[name], name
    assert found["in_work"] == 0 and found["bytes_free"] is None
    shown = {record["id"]: png for png, record in sample_pictures(Storage(folder), 8)}
    assert {record["id"]: png for png, record in sample_pictures(bucket, 8)} == shown


def test_a_torn_part_is_passed_over(folder, tmp_path):
    part = folder / "parts" / "pictures-00002" / "00-00001.tar"
    part.write_bytes(b"torn")
    try:
        assert read_figures(Storage(folder)).in_work == 3
    finally:
        part.unlink()


@pytest.mark.parametrize(
    "damage",
    [lambda s: s.update(missing=[]), lambda s: s["records"][0].pop("group"), lambda s: s.pop("count")],
)
def test_a_damaged_manifest_is_one_line(folder, tmp_path, capsys, damage):
    copied = shutil.copytree(folder, tmp_path / "set")
    file = copied / "pictures-00001.json"
    manifest = json.loads(file.read_text())
    damage(manifest)
    file.write_text(json.dumps(manifest))
    assert main([str(copied), "-o", str(tmp_path / "page.html")]) == 2
    message = capsys.readouterr().err
    assert "pictures-00001.json is damaged" in message and message.count("\n") == 1


def test_what_is_no_set_is_refused_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("error: ") and "is not a set of pictures" in message and message.count("\n") == 1
    )
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(UserError, match="options.json"):
        read_figures(Storage(tmp_path / "nowhere"))
