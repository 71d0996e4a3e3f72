import pytest
import torch
from PIL import Image

from dd3g.errors import UserError
from distill.simulation import mattes
from distill.simulation.mattes import (
    BELIEVED,
    Mattes,
    ground_of,
    keyed,
    matte_model,
    matte_view,
    matte_views,
)

S = 64
Y, X = torch.meshgrid(*[torch.arange(S) - S / 2 + 0.5] * 2, indexing="ij")
DISC = (20.5 - (X**2 + Y**2).sqrt()).clamp(0, 1)  # alpha
RED, WHITE, GREY = (torch.tensor(c)[:, None, None] for c in ((0.8, 0.2, 0.1), (1.0,) * 3, (0.498,) * 3))


def on(ground, colour=RED):
    """A disc on a ground, with the noise that a VAE leaves."""
    view = colour * DISC + ground * (1 - DISC)
    return (view + 0.01 * torch.randn(view.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


@pytest.mark.parametrize("ground", [WHITE, GREY, torch.tensor([0.1, 0.6, 0.9])[:, None, None]])
def test_a_flat_ground_gives_the_matte(ground):
    alpha, confidence, colour = matte_view(on(ground), "ground")
    assert (alpha - DISC).abs().mean() < 0.005 and (alpha - DISC).abs().max() < 0.6
    assert confidence > 0.9
    assert (colour - ground[:, 0, 0]).abs().max() < 0.01


def test_straight_colours_of_the_outline_hold_no_ground():
    view = RED * DISC + WHITE * (1 - DISC)
    found = matte_views(view[None], "ground")
    rgba = found.straight(view[None])[0]
    outline = (DISC > 0.3) & (DISC < 1)
    assert outline.sum() > 50 and (rgba[:3, outline] - RED[:, 0]).abs().mean() < 0.05
    exact = Mattes(DISC[None, None], torch.ones(1), torch.ones(1, 3), "ground")
    torch.testing.assert_close(
        exact.straight(view[None])[0, :3, DISC > 0], RED[:, 0].expand(3, int((DISC > 0).sum()))
    )


@pytest.mark.parametrize("case", ["pale", "white", "shadow", "gradient", "empty", "full", "holes"])
def test_what_cannot_be_told_is_not_believed(case):
    view = on(WHITE)
    if case == "pale":
        lit = 0.75 + 0.25 * (1 - ((X + 10) ** 2 + (Y + 10) ** 2).sqrt() / 30)
        view = on(WHITE, lit.clamp(0, 1).expand(3, S, S))
    if case == "white":
        view = on(WHITE, WHITE)
    if case == "shadow":
        view[:, 55:60, 10:50] -= 0.1
    if case == "gradient":
        view = on(torch.linspace(0.3, 1, S).expand(3, S, S))
    if case == "empty":
        view = WHITE.expand(3, S, S)
    if case == "full":
        view = RED.expand(3, S, S)
    if case == "holes":  # or is it a white patch?
        view[:, 20:44, 26:38] = 1
    assert matte_view(view, "ground")[1] < BELIEVED
    found = matte_views(torch.stack([view, on(WHITE)]), "ground")
    assert (found.confidence >= BELIEVED).tolist() == [False, True] and found.model == "ground"


def test_pale_pixels_count_as_doubtful_off_the_outline_alone():
    view = RED * DISC + WHITE * (1 - DISC)
    assert keyed(view, torch.ones(3))[1] == 0
    view[:, 27:37, 27:37] = 0.9  # within the disc
    view[:, 2:6, 30:40] = 0.9  # and above it
    alpha, doubtful = keyed(view, torch.ones(3))
    assert doubtful == 100 + 40 and (alpha[0, 27:37, 27:37] == 1).all() and (alpha[0, 2:6] == 0).all()


@pytest.mark.parametrize(("wide", "believed"), [(20, True), (40, False)])
def test_a_ground_that_fills_less_than_nine_tenths_of_the_border_tells_nothing(wide, believed):
    """Of 252 pixels; 20 leave 92 %, 40 leave 84 %."""
    view = RED * DISC + WHITE * (1 - DISC)
    view[:, :8, 10 : 10 + wide] = RED
    confidence = matte_view(view, "ground")[1]
    assert confidence > 0.9 if believed else confidence == 0


def test_a_model_is_asked_where_the_ground_does_not_tell(monkeypatch):
    asked = []

    def model(image, name):
        asked.append(name)
        return Image.fromarray((DISC * 255).round().byte().numpy())

    monkeypatch.setattr(mattes, "predict_matte", model)
    gradient = on(torch.linspace(0.3, 1, S).expand(3, S, S))
    found = matte_views(torch.stack([on(WHITE), gradient]), "ground+isnet")
    assert asked == ["isnet"] and (found.confidence > 0.9).all()
    torch.testing.assert_close(found.alpha[1, 0], (DISC * 255).round() / 255)
    middle = float(gradient[:, DISC < 0.05].median())
    assert float(found.ground[1].mean()) == pytest.approx(middle, abs=0.02)
    matte_views(on(WHITE)[None], "isnet")
    assert asked == ["isnet"] * 2


def test_a_hazy_matte_of_a_model_is_not_believed(monkeypatch):
    haze = Image.fromarray((DISC * 100 + 20).byte().numpy())
    monkeypatch.setattr(mattes, "predict_matte", lambda image, name: haze)
    assert matte_view(on(WHITE), "u2netp")[1] == 0


def test_auto_is_what_this_machine_has(monkeypatch, tmp_path):
    monkeypatch.setattr(mattes, "model_path", lambda name: None)
    assert matte_model("auto") == "ground" and matte_model("isnet") == "isnet"
    monkeypatch.setattr(mattes, "model_path", lambda name: tmp_path)
    assert matte_model("auto") == "ground+u2netp"


def test_the_ground_is_the_borders_colour():
    view = on(GREY)
    view[:, :10] = 0
    colour, share = ground_of(view)
    assert (colour - 0.498).abs().max() < 0.01 and 0.6 < share < 0.75


def test_an_unknown_model_is_a_users_error():
    with pytest.raises(UserError):
        matte_views(on(torch.linspace(0.3, 1, S).expand(3, S, S))[None], "ground+no-such-model")
