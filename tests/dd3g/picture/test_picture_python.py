"""What Python hands over as a picture: right, or a clear error."""

import io
import os
import threading
import warnings
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.made_up_pictures import disc

import dd3g
from dd3g.errors import UserError
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.picture import Picture, load_image
from dd3g.picture.decoding import read_rgba


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_one_picture_in_every_form(tmp_path):
    array = disc()
    (tmp_path / "x.png").write_bytes(png(array))
    bytes_first = torch.from_numpy(array).permute(2, 0, 1)
    expected = load_image(array).rgba
    forms = {
        "name": str(tmp_path / "x.png"),
        "path": tmp_path / "x.png",
        "bytes": png(array),
        "bytearray": bytearray(png(array)),
        "buffer": io.BytesIO(png(array)),
        "PIL": Image.fromarray(array),
        "lazy PIL": Image.open(tmp_path / "x.png"),
        "uint8 tensor": bytes_first,
        "int64 array": array.astype(np.int64),
        "uint16 array": array.astype(np.uint16) * 257,
        "float32 array": array.astype(np.float32) / 255,
        "float64 tensor": bytes_first.double() / 255,
        "strided array": np.repeat(array, 2, 1)[:, ::2],
    }
    for name, form in forms.items():
        assert torch.equal(load_image(form).rgba, expected), name
    with open(tmp_path / "x.png", "rb") as stream:
        assert torch.equal(load_image(stream).rgba, expected)
    half = load_image(bytes_first.half() / 255).rgba
    assert (half - expected).abs().max() <= 1 / 255 + 1e-6


def test_modes_of_pil():
    """Values up to 255 in modes I and F are the usual ones, not 16 bits that are nearly black."""
    grey = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1)))
    expected = load_image(grey, matte="none").rgba
    tiny = Image.fromarray(np.asarray(grey, np.float32) / 255)
    for image in (grey.convert("I"), grey.convert("F"), tiny, grey.convert("RGB"), grey.convert("RGBX")):
        assert torch.equal(load_image(image, matte="none").rgba, expected), image.mode
    for mode in ("1", "P", "LA", "PA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB"):
        assert load_image(_as(grey, mode), matte="none").rgba.shape == (4, 256, 256)


def _as(grey, mode):
    for step in {"RGBa": ["RGBA"], "La": ["LA"], "PA": ["P"], "LAB": [], "HSV": ["RGB"]}.get(mode, []):
        grey = grey.convert(step)
    return Image.new("LAB", (16, 16), (99, 128, 128)) if mode == "LAB" else grey.convert(mode)


@pytest.mark.parametrize(
    "source, message",
    [
        (
            np.zeros((8, 8, 5), np.uint8),
            r"must be an array \(H, W\) or \(H, W, 1..4\), or a tensor .*\(8, 8, 5\)",
        ),
        (np.zeros((3, 32, 32), np.uint8), r"\(3, 32, 32\)"),
        (torch.zeros(32, 32, 3), r"must be an array .* Tensor \(32, 32, 3\)"),
        (torch.zeros(2, 3, 32, 32), r"\(2, 3, 32, 32\)"),
        (np.zeros(8, np.uint8), "must be an array"),
        (np.zeros((0, 9, 3), np.uint8), "has no pixels"),
        (np.full((32, 32, 3), 200.0), "holds values from 200 to 200: floats lie in 0..1; divide by 255"),
        (torch.full((3, 32, 32), 128.0), "divide by 255, or give uint8"),
        (np.full((32, 32, 3), -5), "give whole numbers in 0..255"),
        (np.full((32, 32, 3), np.nan), "NaN or infinite"),
        (torch.full((4, 32, 32), torch.inf), "NaN or infinite"),
        (np.zeros((32, 32, 3), complex), "holds values of type complex128"),
        (np.zeros((32, 32), "U1"), "holds values of type <U1"),
        (Image.fromarray(np.full((16, 16), 70000, np.int32)), "holds values from 70000 to 70000"),
        (
            Image.fromarray(np.full((16, 16), 99, np.uint16)),
            "holds 16-bit values up to 99, all black: save it",
        ),
        (None, "is of type NoneType: give a path"),
        ({"image": 1}, "is of type dict"),
        ([disc()], "is of type list"),
        (io.StringIO("text"), "is of type StringIO"),
        (b"", r"is empty \(0 bytes\)"),
        (b"no picture", "is not a PNG"),
    ],
)
def test_what_cannot_be_right_is_said(source, message):
    with pytest.raises(UserError, match=message):
        load_image(source)


def test_a_cut_short_pil_picture_is_said():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(png(noise)[:-2000]))
    with pytest.raises(UserError, match="the picture is damaged or cut short"):
        load_image(image)


# --- the generator -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(width=32, depth=1, heads=2)).eval()


def same(a, b):
    return torch.equal(a.means, b.means) and torch.equal(a.colors, b.colors)


def test_tensors_to_generate(generator):
    framed = load_image(disc()).rgba
    expected = generator.generate(Picture(framed), raw=True)
    assert same(generator.generate(framed, raw=True), expected)
    assert same(generator.generate((255 * framed).round().byte(), raw=True), expected)
    wide = torch.from_numpy(disc()).permute(2, 0, 1) / 255  # not square, so not framed
    assert same(generator.generate(wide, raw=True), expected)
    no_alpha = torch.rand(3, 48, 64)
    whole = generator.generate(Picture(load_image(no_alpha, matte="none").rgba), raw=True)
    assert same(generator.generate(no_alpha, raw=True, matte="none"), whole)
    with pytest.raises(UserError, match="NaN"):
        generator.generate(torch.full((4, 64, 64), torch.nan))
    for several in ([disc()], torch.rand(2, 4, 64, 64)):
        with pytest.raises(UserError, match="generate_each"):
            generator.generate(several)


def test_several_pictures_are_made_as_if_alone(generator):
    pictures = [disc(), disc(radius=10)]
    alone = [generator.generate(p, raw=True, seed=3) for p in pictures]
    for batch in (pictures, torch.stack([load_image(p).rgba for p in pictures])):
        each = generator.generate_each(batch, raw=True, seed=3)
        assert len(each) == 2 and all(same(a, b) for a, b in zip(alone, each, strict=True))


def test_warnings_and_masks_reach_the_user(generator):
    mask = disc()[..., 3]
    with pytest.warns(UserWarning, match="pixels long") as caught:
        masked = generator.generate(
            np.full((64, 96, 3), 99, np.uint8), raw=True, mask=disc(radius=12)[..., 3]
        )
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = generator.generate(np.full((64, 96, 3), 99, np.uint8), raw=True, mask=mask)
    assert not same(masked, good)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), torch.tensor(7), True + 6])
def test_seeds_of_every_whole_type(generator, seed):
    framed = load_image(disc()).rgba
    assert same(generator.generate(framed, seed, raw=True), generator.generate(framed, 7, raw=True))


@pytest.mark.parametrize("seed", [1.5, "7", None, np.float64(7), -1, 2**64])
def test_seeds_that_are_none(generator, seed):
    with pytest.raises(UserError, match="the seed .* give "):
        generator.generate(load_image(disc()).rgba, seed)


def test_where_weights_come_from(generator, tmp_path, monkeypatch):
    import huggingface_hub

    folder = generator.save_pretrained(tmp_path / "tiny")
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Generator.from_pretrained(
        "owner/name", device="auto", revision="v1", token="secret", cache_dir=str(tmp_path)
    )
    ((name, options),) = asked
    assert name == "owner/name" and options["cache_dir"] == str(tmp_path)
    assert options["revision"] == "v1" and options["token"] == "secret"
    for device in ("auto", "cpu", torch.device("cpu")):
        assert Generator.from_pretrained(folder, device=device).type_embedding.device.type in ("cpu", "cuda")
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        Generator.from_pretrained(folder, device="tpu")


def test_the_names_of_the_package_are_shown():
    shown = {name for name in dir(dd3g) if not name.startswith("__")}
    assert shown == {"Cameras", "Gaussians", "Generator", "UserError", "load_image", "rasterize"}
    assert "__version__" in dir(dd3g)
    for name in dd3g.__all__:
        assert getattr(dd3g, name) is not None


@pytest.mark.parametrize(
    "how, match",
    [
        ({"fov": 0}, "field of view 0"),
        ({"fov": np.nan}, "field of view nan"),
        ({"refine": np.nan}, "refine=nan"),
        ({"elevation": 95}, "elevation 95 is out of range: give -80 to 80"),
        ({"elevation": -80.5}, "elevation -80.5 is out of range"),
        ({"elevation": float("nan")}, "elevation nan is out of range"),
        ({"elevation": float("inf")}, "elevation inf is out of range"),
        ({"raw": True, "refine": 1}, "refine fits the discs of a solid body, which raw leaves out"),
    ],
)
def test_options_out_of_range(how, match):
    with pytest.raises(UserError, match=match):
        Generator.from_pretrained("nano").generate(Image.new("RGB", (32, 32)), **how)


def test_nothing_is_refined_where_there_is_no_body():
    generator = Generator(GeneratorConfig(width=16, depth=1, heads=1, surface="off"))
    with pytest.raises(UserError, match="this generator makes none"):
        generator.generate(disc(), refine=1)


def test_files_that_were_read_or_closed(tmp_path):
    data = io.BytesIO()
    Image.fromarray(disc()).save(data, "PNG")
    data.seek(0)
    whole = load_image(data).rgba
    assert torch.equal(load_image(data).rgba, whole)  # at its end by now
    data.seek(5)
    assert torch.equal(load_image(data).rgba, whole)
    data.close()
    with pytest.raises(
        UserError, match="was closed before it was read: give it while it is open, or its path"
    ):
        load_image(data)


def test_files_opened_in_other_ways(tmp_path):
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)  # more than a pipe holds
    Image.fromarray(noise).save(path)
    reading, writing = os.pipe()
    data = path.read_bytes()
    feed = threading.Thread(target=lambda: [os.write(writing, data), os.close(writing)])
    feed.start()
    with os.fdopen(reading, "rb", buffering=0) as stream:  # gives what has come
        assert np.array_equal(np.asarray(read_rgba(stream))[..., :3], noise)
        assert not stream.closed
    feed.join()
    with open(path) as text, pytest.raises(UserError, match="of type TextIOWrapper: give a path, bytes"):
        read_rgba(text)
    with open(tmp_path / "b", "wb") as output, pytest.raises(UserError, match="is not open for reading"):
        read_rgba(output)
    verified = Image.open(path)
    verified.verify()
    with pytest.raises(UserError, match="the picture was closed before it was read"):
        read_rgba(verified)


def test_file_objects_that_do_not_read():
    class Stream:
        def read(self, size):
            return self.give()

    stream = Stream()
    stream.give = lambda: None  # as of a pipe that does not wait
    with pytest.raises(UserError, match="the picture is of type Stream: give a path, bytes"):
        load_image(stream)
    stream.give = lambda: {}["key"]
    with pytest.raises(
        UserError, match="the picture cannot be read .there is no 'key'.: give its path, or its bytes"
    ):
        load_image(stream)


def test_a_picture_whose_file_was_closed(tmp_path):
    Image.fromarray(disc()).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as stream:
        lazy = Image.open(stream)
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    for image in (lazy, closed):
        with pytest.raises(UserError, match="the picture was closed before it was read: give it while"):
            load_image(image)


def test_paths_of_any_kind_and_what_is_none(tmp_path):
    Image.fromarray(disc()).save(tmp_path / "a.png")
    whole = load_image(disc()).rgba

    class Place:
        def __fspath__(self):
            return str(tmp_path / "a.png")

    for path in (Place(), PurePath(tmp_path / "a.png"), np.str_(tmp_path / "a.png")):
        assert torch.equal(load_image(path).rgba, whole)
    for word, match in (
        ("", "an empty argument names no picture"),
        (f"file://{tmp_path}/a.png", "addresses of the kind file are not read: give one of http or https"),
        ("data:image/png;base64,iVBORw0KGgo" + 9999 * "A", "^data:image.{90}: addresses of the kind data"),
        (9999 * "A", r"^A{100}\.\.\. cannot be read .File name too long.: check the path$"),
        ("a\0.png", r"^'a\\x00.png' names no picture: a path cannot contain a zero byte$"),
        (Path("a\0.png"), "a path cannot contain a zero byte"),
    ):
        with pytest.raises(UserError, match=match):
            load_image(word)


def test_numbers_whose_range_is_another():
    deep = np.full((32, 32, 3), 99 << 8, np.uint16)
    for array in (deep, deep.astype(">u2"), deep.astype("<u2")):
        assert np.asarray(read_rgba(array))[0, 0].tolist() == [99, 99, 99, 255]
    with pytest.raises(UserError, match="the picture holds uint16 up to 99, of 65535: give uint8 in 0..255"):
        load_image(deep >> 8)
    with pytest.raises(UserError, match="the picture holds values from -1 to 1: floats lie in 0..1$"):
        load_image(torch.linspace(-1, 1, 3 * 16 * 16).view(3, 16, 16))
    for value, shown in ((0.5, 128), (1.05, 255), (99.0, 99)):
        image = Image.new("F", (16, 16), value)
        assert np.asarray(read_rgba(image))[0, 0].tolist() == [shown, shown, shown, 255]
    for value in (1.5, 4.0, 256.0, -0.5):  # brighter than white, or black?
        with pytest.raises(UserError, match=f"the picture holds values from {value:g} to {value:g}: "):
            read_rgba(Image.new("F", (16, 16), value))


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"size": 0}, "the size 0 is out of range: give 1 to 8192"),
        ({"size": -64}, "the size -64"),
        ({"size": 64.5}, "the size 64.5"),
        ({"size": "64"}, "the size '64'"),
        ({"matte": None}, "matte=None is not a name"),
        ({"matte": True}, "matte=True is not a name"),
        ({"fill": "most"}, "the foreground ratio 'most' is not a number"),
        ({"fill": None}, "the foreground ratio None is not a number"),
        ({"mask": np.full((64, 96), 7, np.uint8)}, "nearly black .at most 7 of 255.: paint the object white"),
    ],
)
def test_wrong_options_of_load_image(how, match):
    with pytest.raises(UserError, match=match):
        load_image(disc(), **how)


@pytest.mark.parametrize("name", ["elevation", "fov", "refine"])
@pytest.mark.parametrize("value", ["10", None, [10], np.zeros(2)])
def test_what_is_no_number(name, value):
    generator = Generator(GeneratorConfig(width=16, depth=1, heads=1))
    with pytest.raises(UserError, match=f"{name} .* is not a number: give one"):
        generator.generate(disc(), **{name: value})


def test_a_sparse_tensor_is_not_called_damaged():
    with pytest.raises(UserError, match="is a tensor that cannot be read .*: give a dense one"):
        load_image(torch.zeros(3, 16, 16).to_sparse())


def test_one_picture_is_not_several():
    generator = Generator(GeneratorConfig(width=16, depth=1, heads=1))
    tensor = torch.rand(4, 64, 64)
    for alone in ("a.png", b"x", Image.fromarray(disc()), disc(), tensor, load_image(disc()), 5):
        with pytest.raises(UserError, match="`generate_each` takes several pictures"):
            generator.generate_each(alone)


def test_a_revision_of_what_is_here_is_not_ignored(tmp_path):
    Generator(GeneratorConfig(width=16, depth=1, heads=1)).save_pretrained(tmp_path / "mine")
    for name in ("nano", tmp_path / "mine"):
        with pytest.raises(UserError, match="has no revision 'v1': leave it out"):
            Generator.from_pretrained(name, revision="v1")
    for name in ("", None, 5):
        with pytest.raises(UserError, match="names no weights; shipped are nano"):
            Generator.from_pretrained(name)
