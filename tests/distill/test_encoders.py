"""Pictures as CLIP and the VAEs take them: on any device what the authors' processors give with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.published_teachers import write_imagedream, write_zero123plus
from torch import Tensor
from transformers.image_transforms import get_resize_output_image_size

from dd3g.nn.clip_vision import MEAN, STD
from distill.pictures import on_white
from distill.teachers import load, zero123plus
from distill.teachers.latents import bicubic, bilinear, clip_pixels, levels, pixels, resized


def shades(*shape, seed=0):
    """Levels with hard edges, which overshoot, beside noise."""
    found = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float()
    found[..., : shape[-2] // 2, : shape[-1] // 2] = 255
    found[..., : shape[-2] // 2, shape[-1] // 2 :] = 0
    return found


def as_picture(found: Tensor) -> Image.Image:
    return Image.fromarray(found.byte().permute(1, 2, 0).contiguous().numpy())


def by_pillow(picture, size, resample, mean, std):
    """The authors' processors: the short side resized, the middle cut out."""
    width, height = get_resize_output_image_size(np.asarray(picture), size, default_to_square=False)[::-1]
    picture = picture.resize((width, height), resample)
    left, top = (width - size) // 2, (height - size) // 2
    found = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return torch.from_numpy((found - np.array(mean, np.float32)) / np.array(std, np.float32)).permute(2, 0, 1)


@pytest.mark.parametrize("before, after", [(256, 224), (320, 224), (64, 224), (61, 28), (28, 61), (7, 512)])
@pytest.mark.parametrize("kernel, resample", [(bicubic, 3), (bilinear, 2)])
def test_resized_as_pillow_does(before, after, kernel, resample):
    found = resized(shades(3, before, before + 5), after, after - 3, kernel)
    wanted = as_picture(shades(3, before, before + 5)).resize((after - 3, after), Image.Resampling(resample))
    assert torch.equal(found.permute(1, 2, 0), torch.from_numpy(np.array(wanted)).float())


@pytest.mark.parametrize("height, width", [(40, 40), (50, 31), (28, 90), (20, 45), (28, 28)])
def test_pixels_of_clip_and_of_the_vae(height, width):
    batch = torch.stack([shades(3, height, width, seed=i) for i in range(2)])
    for found, resample, mean, std in (
        (clip_pixels(batch, 28), Image.Resampling.BICUBIC, MEAN, STD),
        (
            pixels(batch, 28, bilinear, (0.5,) * 3, (0.8,) * 3),
            Image.Resampling.BILINEAR,
            (0.5,) * 3,
            (0.8,) * 3,
        ),
    ):
        wanted = torch.stack([by_pillow(as_picture(p), 28, resample, mean, std) for p in batch])
        assert found.is_contiguous() and torch.allclose(found, wanted, atol=1e-6)


def test_what_is_opaque_stays_as_it_is():
    """The authors cut levels off: 200 that became 199.99998 on white would be another picture."""
    rgb = (torch.arange(256) / 255).expand(1, 3, 1, 256)
    seen = on_white(torch.cat([rgb, torch.ones_like(rgb[:, :1])], 1))
    assert torch.equal(seen, rgb)
    wanted = (255 * rgb[0, 0, 0].numpy()).astype(np.uint8)
    assert np.array_equal(levels(seen, truncate=True)[0, 0, 0].numpy(), wanted)
    assert torch.equal(levels(seen, truncate=False)[0, 0, 0], torch.arange(256.0))


def test_the_conditions_see_what_pillow_gives(tmp_path):
    """Half-transparent pictures at a size that no encoder has, through both teachers' own encoders."""
    rgba = torch.stack([shades(4, 40, 40, seed=i) for i in range(2)]) / 255
    teacher = load(write_imagedream(tmp_path / "imagedream"))
    white = [(255 * p.permute(1, 2, 0).numpy()).astype(np.uint8) for p in on_white(rgba)]
    seen = [by_pillow(Image.fromarray(p), 28, Image.Resampling.BICUBIC, MEAN, STD) for p in white]
    wanted = teacher.image(pixel_values=torch.stack(seen), output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(teacher.image_tokens(rgba), wanted, atol=1e-5)

    teacher = load(write_zero123plus(tmp_path / "zero123plus-v1.2"))
    grounds = []
    for picture in (as_picture(p * 255) for p in rgba):
        ground = Image.new("RGB", picture.size, (127,) * 3)
        ground.paste(picture, mask=picture.getchannel("A"))
        grounds.append(ground)
    found = teacher.on_ground(levels(rgba, truncate=False)).byte()
    assert all(np.array_equal(f.permute(1, 2, 0), g) for f, g in zip(found, grounds, strict=True))
    mean, std = zero123plus.MEAN, zero123plus.STD
    seen = [by_pillow(g, 16, Image.Resampling.BILINEAR, mean, std) for g in grounds]
    condition = teacher.condition(rgba)
    assert torch.allclose(condition.latent, teacher.codec.mode(torch.stack(seen)), atol=1e-5)
    assert torch.equal(condition.blank_latent, teacher.codec.mode(torch.zeros(1, 3, 16, 16)))


def test_what_all_pictures_share_is_computed_once_and_moves(tmp_path):
    """Empty captions and blank halves; new weights, or another number format, compute them again."""
    teacher = load(write_imagedream(tmp_path / "imagedream"))
    read = []
    teacher.text.encoder.register_forward_hook(lambda *_: read.append(1))
    rgba = torch.rand(2, 4, 16, 16)
    first, again = teacher.condition(rgba), teacher.condition(rgba.flip(0))
    assert len(read) == 1 and again.blank[0].k is first.blank[0].k
    assert torch.equal(first.context[0].k.flip(0), again.context[0].k)
    teacher.negative = "ugly"
    teacher.text.tokenizer = lambda text: [49406, len(text), 49407]
    assert not torch.equal(teacher.condition(rgba).blank[0].k, first.blank[0].k) and len(read) == 2
    with torch.inference_mode():
        teacher.to(torch.bfloat16).condition(rgba)
    later = teacher.condition(rgba)
    assert len(read) == 4 and later.blank[0].k.dtype == torch.bfloat16 and not later.blank[0].k.is_inference()
