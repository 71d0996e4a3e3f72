from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from data_gen.picture_models.pipelines import load_model
from data_gen.picture_models.protocol import ModelConfig
from data_gen.picture_models.shapes import Shapes
from dd3g.errors import UserError

TEXTS = [f"a thing numbered {i}" for i in range(64)]


def load(**keys):
    return load_model(ModelConfig(**keys), torch.device("cpu"))


def test_the_default_model_draws_rgba():
    model = load()
    assert (model.name, model.licence, model.has_alpha) == ("shapes", "Apache-2.0", True)
    pictures = model.draw(TEXTS[:2], [0, 0])
    assert [(p.mode, p.size) for p in pictures] == [("RGBA", (128, 128))] * 2


def test_a_picture_is_a_function_of_text_and_seed():
    model = load()
    batch = model.draw(TEXTS, list(range(64)))
    alone = load().draw([TEXTS[17]], [17])[0]
    assert alone.tobytes() == batch[17].tobytes()
    assert model.draw([TEXTS[17]], [18])[0].tobytes() != alone.tobytes()
    assert model.draw([TEXTS[18]], [17])[0].tobytes() != alone.tobytes()


def test_pictures_stay_the_same_from_release_to_release():
    digest = hashlib.sha256(Shapes(32).draw(["a red fox"], [7])[0].tobytes()).hexdigest()
    assert digest[:16] == "0ba8206438604dbe"


def test_a_sound_picture_is_one_object_off_the_border():
    for picture in Shapes(64, faulty=0, repeated=0).draw(TEXTS, [3] * 64):
        rgba = np.asarray(picture)
        alpha = rgba[..., 3]
        assert not alpha[[0, -1]].any() and not alpha[:, [0, -1]].any()
        assert 0.02 < (alpha >= 128).mean() < 0.6
        assert not rgba[alpha == 0].any()


def test_all_sound_pictures_differ():
    pictures = Shapes(32, faulty=0, repeated=0).draw(TEXTS * 4, list(range(256)))
    assert len({p.tobytes() for p in pictures}) == 256


def test_faulty_and_repeated_pictures_come_at_the_share_asked_for():
    seeds = list(range(64))
    empty = [not np.asarray(p)[..., 3].any() for p in Shapes(32, faulty=1, repeated=0).draw(TEXTS, seeds)]
    assert 8 <= sum(empty) <= 24  # a quarter of the faults
    repeated = Shapes(16, faulty=0, repeated=1).draw(TEXTS * 8, list(range(512)))
    assert 95 <= len({p.tobytes() for p in repeated}) <= 100


def test_side_and_shares_are_keys_of_the_config():
    model = load(width=48, call_options={"faulty": 0.5, "repeated": 0.25})
    assert (model.side, model.faulty, model.repeated) == (48, 0.5, 0.25)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"guidance": 3.0}, "does not take guidance"),
        ({"scheduler": "DDIMScheduler"}, "does not take scheduler"),
        ({"call_options": {"sharpness": 1}}, "does not take call_options.sharpness"),
        ({"height": 64, "width": 32}, "squares, not 32x64"),
        ({"call_options": {"faulty": "abc"}}, "call_options.faulty must be a share from 0 to 1, got 'abc'"),
        ({"call_options": {"repeated": 2}}, "call_options.repeated must be a share from 0 to 1, got 2"),
    ],
)
def test_keys_without_meaning_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        load(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"dtype": "int8"},
        {"attention": "flash"},
        {"offload": "disk"},
        {"steps": -1},
        {"guidance": -1.0},
        {"path": ""},
    ],
)
def test_bad_values_are_refused_when_the_config_is_made(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        ModelConfig(**keys)
