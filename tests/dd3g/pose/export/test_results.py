"""JSON, figure and page: what was estimated, as people and programs read it."""

import json
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.headless_chromium import CHROMIUM, Page
from stand_ins.made_up_people import SIZE, STANDING, K, person

from dd3g.pose.body.geometry import project
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.export import results
from dd3g.pose.export.figures import LEFT, RIGHT, bone_colors, draw_overlay, draw_view, figure, save_viewer


def test_json_says_what_was_estimated(tmp_path):
    people = [person(), person(1.0, m=1)]
    content = results.head("guided") | {"people": [results.as_json(p) for p in people]}
    read = json.loads(results.save_json(content, tmp_path / "a.json").read_text())
    first, second = read["people"]
    assert read["joints"] == list(H36M_17.joints) and len(first["hypotheses"]) == 8
    np.testing.assert_allclose(first["recommended"]["pose"], people[0].pose, atol=1e-6)
    np.testing.assert_allclose(first["recommended"]["translation"], [0, 0, 4], atol=0.2)
    assert [h["energy"] for h in first["hypotheses"]] == list(range(8))
    assert 0.03 < first["recommended"]["expected_error"] < 0.12
    assert second["recommended"]["expected_error"] is None  # one hypothesis has no spread; NaN is no JSON


def test_frames_are_written_as_they_come(tmp_path):
    """Those of an hour, all as Python numbers at once, take a gigabyte."""

    class Frame(dict):
        pass

    def frames():
        before = []
        for i in range(4):
            assert all(frame() is None for frame in before[:-1])
            frame = Frame(index=i, pose=torch.full((2,), i / 3))
            before.append(weakref.ref(frame))
            yield frame
            del frame

    listed = {"a": [1.5, None], "frames": [{"index": i, "pose": [i / 3, i / 3]} for i in range(4)], "b": {}}
    results.save_json(listed, tmp_path / "list.json")
    results.save_json(listed | {"frames": frames()}, tmp_path / "iterator.json")
    assert (tmp_path / "iterator.json").read_bytes() == (tmp_path / "list.json").read_bytes()
    read = json.loads((tmp_path / "list.json").read_text())
    assert read["frames"][1] == {"index": 1, "pose": [0.333333, 0.333333]} and read["a"] == [1.5, None]
    results.save_json({"frames": iter(())}, tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == {"frames": []}


def test_translation_puts_the_pose_on_its_keypoints():
    one = person(0.8, spread=0.0)
    np.testing.assert_allclose(one.translation, [0.8, 0, 4], atol=1e-3)
    assert torch.allclose(project(one.pose + one.translation, K), one.detection.keypoints, atol=0.1)


def test_overlay_draws_left_and_right_where_they_are():
    one = person(spread=0.0)
    image = np.asarray(draw_overlay([one], Image.new("RGB", SIZE, "white"))).astype(int)
    assert image.shape == (960, 1280, 3)
    for joints, color in (((4, 5), LEFT), ((1, 2), RIGHT)):
        x, y = (2 * one.detection.keypoints[list(joints)].mean(0)).round().int().tolist()
        np.testing.assert_allclose(image[y, x], color, atol=40)
    assert bone_colors()[0] == RIGHT and bone_colors()[3] == LEFT


def test_figure_has_three_views_for_each_person():
    sheet = figure([person(-0.5), person(0.5), person(0.0)], None)
    assert sheet.size == (853 + 660, 660)
    pixels = np.asarray(sheet).astype(int)
    for row in range(3):
        for column in range(3):
            panel = pixels[row * 220 : row * 220 + 220, 853 + column * 220 :][:, :220]
            blue = (panel[..., 2] - panel[..., 0] > 100).sum()
            red = (panel[..., 0] - panel[..., 2] > 100).sum()
            assert min(blue, red) > 40, (row, column)
    side = np.asarray(draw_view(person(spread=0.0), "side", 220)).astype(int)
    drawn = np.argwhere(np.ptp(side, axis=-1) > 60)
    assert np.ptp(drawn[:, 1]) < 30 < np.ptp(drawn[:, 0])  # someone who stands is thin from the side


def test_people_of_a_video_keep_their_numbers_when_others_leave():
    drawn = [draw_overlay([replace(person(), track=n)], None).tobytes() for n in (None, 0, 3)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_page_is_whole_and_can_not_be_injected(tmp_path):
    path = save_viewer([[person()]], tmp_path / "a.html", "</title><script>x</script>{{data}}")
    page = path.read_text()
    assert "<title>&lt;/title&gt;&lt;script&gt;x&lt;/script&gt;{{data}}</title>" in page
    assert "default-src 'none'" in page and not re.search(r"https?://|//\w+\.\w+/", page)
    data = json.loads(re.search(r'<script type="application/json" id="data">([^<]*)</script>', page)[1])
    assert len(data["frames"]) == 1 and np.shape(data["frames"][0]) == (1, 9, 17, 3)
    np.testing.assert_allclose(np.array(data["frames"][0][0][0])[3, 1], 1000 * STANDING[3, 1], atol=150)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    page = Page(tmp_path_factory.mktemp("profile"), 256)
    yield page
    page.close()


def test_page_shows_left_and_right_and_turns(page, tmp_path):
    file = save_viewer([[person(spread=0.0)]], tmp_path / "a.html")
    page.open(file, "#spin=0&azimuth=0&elevation=0")
    page.wait("!stale")
    page.eval("document.querySelectorAll('header, #hint, nav').forEach((part) => part.remove())")
    shot = page.screenshot().astype(int)
    blue, red = shot[..., 2] - shot[..., 0] > 100, shot[..., 0] - shot[..., 2] > 100
    assert min(blue.sum(), red.sum()) > 100
    assert np.argwhere(red)[:, 1].mean() < 120 < 136 < np.argwhere(blue)[:, 1].mean()
    assert np.argwhere(blue)[:, 0].min() < 90 and np.argwhere(blue)[:, 0].max() > 190  # upright
    page.eval("turn(180, 0)")
    page.wait("!stale")
    shot = page.screenshot().astype(int)
    assert np.argwhere(shot[..., 2] - shot[..., 0] > 100)[:, 1].mean() < 120  # from behind
    assert page.requests == [file.as_uri()] and page.errors == []


def test_page_of_a_video_plays(page, tmp_path):
    frames = [[person(x)] for x in (-0.2, 0.0, 0.2)] + [[]]
    page.open(save_viewer(frames, tmp_path / "a.html", fps=20), "#spin=0")
    page.wait("current > 0")
    assert page.eval("byId('count').textContent") == "1 person, 4 frames"
    page.eval("byId('play').click(), show(1)")
    assert page.eval("[playing, current, byId('time').value]") == [False, 1, "1"]
    assert page.errors == []
