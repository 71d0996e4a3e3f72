"""Pictures in shards, and what their samples say about them."""

import json

import pytest
from PIL import Image
from stand_ins.encoded_pictures import encoded
from stand_ins.made_up_pictures import disc

from dd3g.io.shards import Shards, write_shard
from dd3g.picture.sources import ShardPictures


@pytest.mark.parametrize(
    ("beside", "caption"),
    [
        ({"json": json.dumps({"prompt": "a cat", "seed": 3})}, "a cat"),  # as data_gen writes them
        (
            {"txt": "a cat", "json": json.dumps({"caption": "a cat", "url": "x"})},
            "a cat",
        ),  # as img2dataset does
        ({"txt": "a cät\n"}, "a cät"),
        ({"txt": "a cat", "json": "{broken"}, "a cat"),
        ({"txt": "", "json": "[1]"}, ""),
        ({"json": json.dumps({"prompt": None})}, ""),
        ({"txt": " \n", "json": json.dumps({"caption": "a cat", "prompt": ["a", "dog"]})}, "a cat"),
        ({}, ""),
    ],
)
def test_captions_are_found_where_people_keep_them(tmp_path, beside, caption):
    write_shard(
        tmp_path / "a.tar",
        [{"__key__": "a", "png": encoded(Image.fromarray(disc()), "png").getvalue()} | beside],
    )
    assert ShardPictures(Shards([tmp_path / "a.tar"])).caption(0) == caption
