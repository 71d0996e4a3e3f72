"""The texts that Ultralytics writes, in shares of a picture."""

import pytest
import torch
from stand_ins.detector_files import SEEN, WANTED, rows

from dd3g.errors import UserError
from dd3g.pose.detection.reading import read_frames, read_keypoints

pytestmark = pytest.mark.usefixtures("reading")


def yolo(size, shift=0.0, after="", confident=True):
    """A line as Ultralytics' save_txt writes it."""
    shares = [(x / size[0], y / size[1], c)[: 3 if confident else 2] for x, y, c in rows(shift=shift)]
    numbers = [0, 0.5, 0.5, 0.6, 0.9, *(v for row in shares for v in row)]
    return " ".join(f"{v:.6g}" for v in numbers) + after + "\n"


@pytest.mark.parametrize(
    ("after", "score", "track"),
    [("", None, None), (" 0.91", 0.91, None), (" 3", None, 3), (" 0.91 1", 0.91, 1)],
)
@pytest.mark.parametrize("confident", [True, False])
def test_shares_of_the_picture_in_yolos_texts(tmp_path, after, score, track, confident):
    path, size = tmp_path / "demo.txt", (640, 480)
    path.write_text(yolo(size, after=after, confident=confident) + "\n" + yolo(size, 9.0, after))
    read = read_keypoints(path, size=size)
    assert read.size == size and read.tracks == (track, track)
    assert (read.scores is None) == (score is None)
    torch.testing.assert_close(read.points[0], WANTED, atol=2e-3, rtol=0)
    want = SEEN if confident else torch.ones(17)
    torch.testing.assert_close(read.confidence[0], want, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="fractions of the picture: give --size"):
        read_keypoints(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no person"),
        ("\ufffd notes", "line 1 has something other than numbers"),
        ("0 0.5 0.5 0.6 0.9", "line 1 has 5 numbers: .* 39 or 56"),
        (yolo((1, 1)), "must be fractions of the picture"),
    ],
)
def test_texts_that_are_not_yolos_are_refused(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_keypoints(tmp_path / "a.txt", size=(640, 480))


def test_a_folder_of_yolos_texts_is_a_video_that_begins_at_one(tmp_path):
    size = (640, 480)
    for number, shift in ((1, 0.0), (3, 6.0)):  # nobody in the second: no file
        (tmp_path / f"clip_{number}.txt").write_text(yolo(size, shift, " 5"))
    found = read_frames(tmp_path, "clip", size=size)
    assert [k is not None for k in found] == [True, False, True]
    assert found[2] is not None and found[2].tracks == (5,)
    torch.testing.assert_close(found[2].points[0], WANTED + torch.tensor([6.0, 0]), atol=2e-3, rtol=0)
