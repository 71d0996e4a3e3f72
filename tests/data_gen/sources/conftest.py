from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from stand_ins.collected import GREEN, encoded, on_green, shapes

from data_gen.filters import mattes


@pytest.fixture
def green_screen(monkeypatch):
    """A matting model for pictures on green."""

    def predict(image, model, threads):
        away = np.abs(np.asarray(image, np.int16) - GREEN).sum(-1) > 60
        return Image.fromarray(np.where(away, 255, 0).astype(np.uint8))

    monkeypatch.setattr(mattes, "predict_matte", predict)


@pytest.fixture
def folder(tmp_path):
    """Eight pictures that can be used, five that cannot be opened, three that the filters leave out."""
    root = tmp_path / "pictures"
    (root / "cups").mkdir(parents=True)
    (root / ".hidden").mkdir()
    good = shapes(8)
    for i in range(4):
        good[i].save(root / f"plain {i}.png")
    good[4].save(root / "cups" / "cup.webp", lossless=True)
    on_green(good[5]).save(root / "cups" / "photo.jpg", quality=95)
    on_green(good[6]).save(root / "photo.BMP")
    good[7].resize((300, 300)).save(root / "large.png")
    (root / "cut.png").write_bytes(encoded(good[0])[:500])
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("this is no picture")
    Image.new("RGBA", (64, 64)).save(root / "clear.png")
    Image.new("RGB", (3, 3)).save(root / "tiny.png")
    speck = Image.new("RGBA", (128, 128))
    speck.paste((200, 90, 40, 255), (60, 60, 66, 66))
    speck.save(root / "speck.png")
    Image.new("RGB", (64, 64), GREEN).save(root / "only green.png")
    good[0].save(root / "twin.png")
    good[1].save(root / ".hidden" / "x.png")
    (root / "notes.txt").write_text("not a picture")
    lines = [
        {
            "file_name": "plain 1.png",
            "text": "a  red\tthing",
            "license": "CC-BY-4.0",
            "noun": "thing",
            "x": 3,
        },
        {"file": "cups/cup.webp", "caption": "a cup", "category": "vessels", "model": "a camera"},
        {"file_name": "nowhere.png", "text": "lost"},
    ]
    rows = [*map(json.dumps, lines), "{", "[1]", '{"text": "no file"}']
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root
