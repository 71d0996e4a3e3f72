from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU

from dd3g.nn import multiview_unet, unet_blocks
from dd3g.nn.blocks import timestep_embedding
from tools import check_goldens
from tools.check_goldens import find_seeds
from tools.goldens import made_up, unet
from tools.goldens.golden import CALL, Compared, Golden

GOLDEN = Path(__file__).parent.parent / "golden" / "teachers"


@pytest.fixture
def single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_stream_of_made_up_weights():
    first = made_up.weight("time_embed.0.weight", (128, 32), 1).ravel()[:4]
    assert first.round(6).tolist() == pytest.approx([-0.250421, 0.463327, 0.644163, 0.172638], abs=1e-6)
    assert made_up.weight("a.bias", (4,), 1).std() < 0.2 < made_up.weight("attn.to_q.weight", (4, 4), 1).std()
    smooth = made_up.picture("picture", 20, 30, 1)
    assert smooth.shape == (20, 30, 3) and 0 < smooth.min() < smooth.max() < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kept", [("unet_mvdream", 42), ("pipeline_mvdream", 12), ("zero123pp", 24), ("lgm", 0)]
)
def test_the_authors_numbers(name, kept, capsys):
    """All of them where they lie beside the data, else those that are kept here."""
    folder = next(f for f in (check_goldens.default_folder(), GOLDEN) if f.is_dir())
    if not (folder / f"{name}.npz").is_file():
        pytest.skip("some of its numbers are in test_goldens_lgm")
    assert check_goldens.main([str(folder), "--only", name]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "all arrays agree" and all(line.endswith("ok") for line in lines)
    arrays = set(np.load(folder / f"{name}.npz").files)
    assert {line.split()[1] for line in lines} == arrays and len(arrays) >= kept


def shapes_of(network: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def unet_golden(seed: int, views: int, ip_dim: int, width: int, side: int) -> Golden:
    """Zeros in the form of a golden U-Net file."""
    config = {
        "model_channels": width,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [1, 2],
        "num_head_channels": 16,
        "context_dim": 48,
        "ip_dim": ip_dim,
    }
    text = config | {"ip_dim": 0}
    about = {"seed": seed}
    for end, one in (("", config), ("_text", text)):
        about |= {f"config{end}": one}
        with torch.device("meta"):
            network = multiview_unet.MultiViewUNet(multiview_unet.MultiViewUNetConfig(**one, image_dim=80))
        about[f"shapes{end}"] = shapes_of(network)
    frames = views + 1
    shapes = {
        "out": (2 * frames, 4, side, side),
        "text.out": (2 * views, 4, side, side),
        f"camera.{views}.20.45": (views, 16),
        f"camera.{views}.-12.5.0": (views, 16),
        "part.image_embed": (2, ip_dim, 48),
        "part.input_blocks.1.1": (frames, width, 8, 8),
        "part.input_blocks.2.0": (frames, width, 4, 4),
        "part.input_blocks.3.0": (frames, 2 * width, 8, 8),
        "part.small.input_blocks.1.0": (frames, width, 8, 8),
        "part.attn2": (frames, 12, width),
        "part.camera_embed": (frames, 4 * width),
        "part.time_embed": (4, 4 * width),
        "probe.middle_block": (66,),
    }
    return Golden("unet_mvdream", {k: np.zeros(s) for k, s in shapes.items()}, about, seed)


@functools.cache
def found(*shape: int) -> Golden:
    """What the check finds for a `unet_golden`."""
    golden = unet_golden(*shape)
    with torch.no_grad():
        found = {one.name: one.found for one in unet.check(golden)}
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in golden.arrays.items()}
    return Golden(golden.name, found, golden.about, golden.seed)


def write(folder: Path, *shape: int) -> Golden:
    """The same as a golden file."""
    golden = found(*shape)
    np.savez(folder / f"{golden.name}.npz", **golden.arrays)
    (folder / f"{golden.name}.json").write_text(json.dumps(golden.about))
    return golden


def test_arrays_that_are_left_out_and_other_number_types(tmp_path, capsys):
    golden = write(tmp_path, 5, 2, 4, 32, 4)
    kept = {k: v.astype(np.float64) for k, v in golden.arrays.items() if k in ("out", "part.time_embed")}
    np.savez(tmp_path / "unet_mvdream.npz", **kept)
    assert check_goldens.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" ok") == 2


def test_what_another_folder_may_have(tmp_path, capsys):
    """Half precision, settings among the arrays, unknown options, a name that goes on, MVDream alone."""
    golden = write(tmp_path, 5, 2, 4, 32, 4)
    for end in ("npz", "json"):
        (tmp_path / f"unet_mvdream.{end}").unlink()
    halves = {k: v.astype(np.float16) for k, v in golden.arrays.items()}
    about = {k: v for k, v in golden.about.items() if k != "seed"} | {"note": "made up"}
    about["config"] = golden.about["config"] | {"dims": 2, "_class_name": "Unet"}
    text = {k: about[k] for k in ("config_text", "shapes_text")}
    numbers = {"seed": np.array(5), "t": np.array([441])}
    for name, arrays, words in (
        ("two", halves | numbers, about),
        ("text", {"text.out": golden.arrays["text.out"]}, text | {"seed": 5}),
    ):
        np.savez(tmp_path / f"unet_mvdream_{name}.npz", **arrays)
        (tmp_path / f"unet_mvdream_{name}.json").write_text(json.dumps(words))
    assert check_goldens.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" ok") == len(golden.arrays) + 1
    np.savez(tmp_path / "unet_mvdream_two.npz", **halves | {"t": np.array(440), "seed": np.array(5)})
    assert check_goldens.main([str(tmp_path)]) == 1
    (tmp_path / "unet_mvdream_text.json").write_text(json.dumps(text | {"seed": "5"}))
    assert check_goldens.main([str(tmp_path), "--only", "unet_mvdream_text"]) == 2
    assert "says seed '5': give a whole number" in capsys.readouterr().err


def test_files_of_several_seeds(tmp_path, capsys):
    """Each is found, where nobody tells them; one that nothing can be made of is left for its turn."""
    for seed in (3, 41):
        golden = write(tmp_path, seed, 2, 4, 32, 4)
        about = {k: v for k, v in golden.about.items() if k != "seed"}
        for end in ("npz", "json"):
            (tmp_path / f"unet_mvdream.{end}").rename(tmp_path / f"unet_mvdream_{seed}.{end}")
        (tmp_path / f"unet_mvdream_{seed}.json").write_text(json.dumps(about))
    assert find_seeds(tmp_path) == {"unet_mvdream_3": 3, "unet_mvdream_41": 41}
    (tmp_path / "unet_mvdream.json").write_text("{}")
    np.savez(tmp_path / "unet_mvdream.npz", **{"part.time_embed": np.ones((4, 128))})
    np.savez(tmp_path / "strange.npz", x=np.ones(1))
    (tmp_path / "strange.json").write_text("{}")
    assert find_seeds(tmp_path) == {"unet_mvdream_3": 3, "unet_mvdream_41": 41}
    words = [str(tmp_path), *(w for n in ("strange", "unet_mvdream_41") for w in ("--only", n))]
    assert check_goldens.main(words) == 2
    shown = capsys.readouterr()
    assert (
        "seed 41, as" in shown.out and shown.out.count(" ok") == 13 and "no check has this name" in shown.err
    )


def archive(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_damaged_files_are_told_in_one_line(tmp_path, capsys):
    write(tmp_path, 5, 2, 4, 32, 4)
    arrays, about = tmp_path / "unet_mvdream.npz", tmp_path / "unet_mvdream.json"
    whole, text = arrays.read_bytes(), about.read_text()
    rotten = bytearray(whole)
    rotten[len(whole) // 2 : len(whole) // 2 + 99] = bytes(99)
    other = json.dumps(json.loads(text) | {"config": json.loads(text)["config_text"]})
    for data, words, message in (
        (whole[: len(whole) // 2], text, "cannot be read"),
        (bytes(rotten), text, "cannot be read"),
        (archive(out=np.ones(3, complex)), text, "out holds complex128, not real numbers"),
        (archive(out=np.array(["1.0"])), text, "out holds <U3, not real numbers"),
        (archive(out=np.array([None])), text, "cannot be read"),
        (b"", text, "cannot be read"),
        (whole, "[]", "holds no JSON object"),
        (whole, "{}", "json does not describe what unet_mvdream.npz holds (KeyError: there is no 'config')"),
        (whole, other, "does not describe what unet_mvdream.npz holds (RuntimeError: "),
    ):
        arrays.write_bytes(data)
        about.write_text(words)
        assert check_goldens.main([str(tmp_path), "--seed", "5"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_seeds_of_pictures(tmp_path, capsys, monkeypatch):
    """Each kind of file by itself, and a seed that is none of those tried."""
    seen = (255 * made_up.picture("zpicture", 40, 50, 432)).round().astype(np.uint8)
    framed = (255 * made_up.picture("lgm.picture", 30, 40, 543)).round().astype(np.uint8)
    alpha = np.full((40, 50, 1), 7, np.uint8)
    inputs = {
        "zero123pp": ("input_rgba", np.concatenate([seen, alpha], -1), 432),
        "lgm": ("preprocess.rgba", np.concatenate([framed, alpha[:30, :40]], -1), 543),
        "pipeline_mvdream": ("picture", made_up.picture("picture", 200, 200, 1001)[::20, ::20], None),
    }
    monkeypatch.setattr(check_goldens, "LAST", 1000)
    for name, (array, values, seed) in inputs.items():
        folder = tmp_path / name
        folder.mkdir()
        np.savez(folder / f"{name}.npz", **{array: values})
        (folder / f"{name}.json").write_text("{}")
        assert find_seeds(folder) == ({} if seed is None else {name: seed})
    check_goldens.main([str(tmp_path / "pipeline_mvdream")])
    assert "not found, so 1 is used: give it with --seed" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["about", "note", "file", "folder"])
def test_a_large_seed_that_the_folder_mentions(tmp_path, where):
    """Too many to be tried, but the folder may well say it somewhere."""
    seed = 20_261_129_000
    folder = tmp_path / f"goldens-{seed if where == 'folder' else 7}"
    name = f"zero123pp_{seed}" if where == "file" else "zero123pp"
    seen = (255 * made_up.picture("zpicture", 40, 50, seed, 4)).round().astype(np.uint8)
    seen[..., :3] = (255 * made_up.picture("zpicture", 40, 50, seed)).round()
    folder.mkdir()
    np.savez(folder / f"{name}.npz", input_rgba=seen)
    about = {"configs": {"made": {"seed": seed}, "layers": 123_456}} if where == "about" else {}
    (folder / f"{name}.json").write_text(json.dumps(about))
    if where == "note":
        (folder / "weights_rule.py").write_text(f"SEED = {seed}\nOTHER = 1234567\n")
    assert find_seeds(folder) == {name: seed}


def test_half_precision_hides_no_more_than_it_rounds():
    """A mistake of 2e-4, far below a step, is over the tolerance of a call; a sum in another order is not."""
    computed = np.random.default_rng(0).standard_normal(5000)
    stored = computed.astype(np.float16)
    again = computed * (1 + 1e-6)
    assert Compared("x", again, stored, 1e-6).agrees and Compared("x", computed, stored, 0).agrees
    assert not Compared("x", computed * (1 + 2e-4), stored, CALL).agrees
    for most in (65504, np.inf):  # above which there is no step
        assert not Compared("x", computed, np.full(5000, most, np.float16), CALL).agrees


def test_the_seed_is_found_where_nobody_tells_it(tmp_path, capsys):
    write(tmp_path, 37, 2, 4, 32, 4)
    about = json.loads((tmp_path / "unet_mvdream.json").read_text())
    del about["seed"]
    (tmp_path / "unet_mvdream.json").write_text(json.dumps(about))
    assert check_goldens.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("seed 37, as the made-up inputs are\n")
    assert check_goldens.main([str(tmp_path), "--seed", "1"]) == 1


def sines_first(t, dim):
    return torch.cat(timestep_embedding(t, dim).chunk(2, -1)[::-1], -1)


def per_view(self, x, context):
    B = len(x)
    h = self.norm1(x).reshape(B * FRAMES, -1, x.shape[-1])
    x = x + self.attn1(h, self.attn1.key_values(h)).reshape(x.shape)
    h = self.norm2(x).reshape(len(context.k), -1, x.shape[-1])
    x = x + self.attn2(h, context).reshape(x.shape)
    return x + self.ff(self.norm3(x))


FRAMES = 4
MISTAKES = {
    "sin before cos": ((multiview_unet, "timestep_embedding"), sines_first),
    "tanh GELU": ((GEGLU, "forward"), lambda self, x: tanh_gated(self, x)),
    "attention per view": ((unet_blocks.UNetTransformerBlock, "forward"), per_view),
    "elevation's sign": ((unet, "ELEVATION"), -unet.ELEVATION),
    "level off by one": ((unet, "LEVEL"), unet.LEVEL - 1),
}


def tanh_gated(self, x):
    value, gate = self.proj(x).chunk(2, -1)
    return value * F.gelu(gate, approximate="tanh")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_known_mistakes_are_over_the_tolerance(mistake, monkeypatch, tmp_path, single_thread):
    golden = write(tmp_path, 1, FRAMES - 1, 8, 32, 8)
    (owner, name), wrong = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, wrong)
    with torch.no_grad():
        found = {one.name: one for one in unet.check(golden)}
    assert not found["out"].agrees and found["out"].rmse > CALL
    assert found["camera.3.20.45"].agrees


def test_figures_by_hand():
    wanted = np.array([3.0, 4.0, 0.0, 0.0])  # rms 2.5
    one = Compared("x", wanted + np.array([0.0, 0.0, 0.5, 0.0]), wanted, 0.1)
    assert one.largest == pytest.approx(0.2) and one.rmse == pytest.approx(0.1) and one.agrees
    assert not Compared("x", wanted[:2], wanted, 1.0).agrees
    assert not Compared("x", np.full(4, np.nan), wanted, 1.0).agrees


def test_a_file_that_is_missing(tmp_path, capsys):
    """Half a folder agrees with nothing."""
    write(tmp_path, 3, 2, 4, 32, 4)
    words = [str(tmp_path), "--only", "unet_mvdream"]
    assert check_goldens.main([*words, "--only", "lgm"]) == 2
    assert "holds no lgm.npz: copy it whole" in capsys.readouterr().err
    (tmp_path / "zero123pp.json").write_text("{}")
    assert check_goldens.main([str(tmp_path)]) == 2
    assert "holds no zero123pp.npz: copy it whole" in capsys.readouterr().err
    assert check_goldens.main(words) == 0


def test_an_array_of_another_shape(tmp_path, capsys):
    golden = write(tmp_path, 3, 2, 4, 32, 4)
    arrays = dict(golden.arrays) | {"part.time_embed": golden.arrays["part.time_embed"][:, :-1]}
    np.savez(tmp_path / "unet_mvdream.npz", **arrays)
    assert check_goldens.main([str(tmp_path)]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "OVER" in line)
    assert "part.time_embed" in line and "rmse inf" in line


def test_what_nobody_compares_is_told(tmp_path, capsys):
    write(tmp_path, 3, 2, 4, 32, 4)
    arrays = dict(np.load(tmp_path / "unet_mvdream.npz")) | {"surprise": np.zeros(3)}
    np.savez(tmp_path / "unet_mvdream.npz", **arrays)
    assert check_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "surprise" in out and "NOT COMPARED" in out and out.endswith("1 arrays do not agree\n")


def test_drift_of_half_precision_is_told_and_no_failure(tmp_path, capsys):
    write(tmp_path, 3, 2, 4, 32, 4)
    assert check_goldens.main([str(tmp_path), "--dtype", "bfloat16"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " out " in line)
    drift = float(line.split("rmse")[1].split()[0])
    assert 1e-3 < drift < 0.5


def test_folders_that_are_none(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DD3G_DATA", raising=False)
    for words, message in (
        ([str(tmp_path / "no")], "no such folder of goldens"),
        ([str(tmp_path)], "holds no NAME.npz"),
        ([str(GOLDEN), "--dtype", "int8"], "give float32, bfloat16 or float16"),
    ):
        assert check_goldens.main(words) == 2
        assert message in capsys.readouterr().err
    assert check_goldens.default_folder() == GOLDEN
    monkeypatch.setenv("DD3G_DATA", str(tmp_path / "no/data"))
    assert check_goldens.main([]) == 2  # without words it compares, and prints no help
    assert f"{tmp_path}/no/goldens: no such folder of goldens" in capsys.readouterr().err
    (tmp_path / "inner").mkdir()
    np.savez(tmp_path / "inner" / "lgm.npz")
    assert check_goldens.main([str(tmp_path)]) == 2
    assert f"holds no NAME.npz; give {tmp_path}/inner" in capsys.readouterr().err
    np.savez(tmp_path / "lgm.npz")
    (tmp_path / "lgm.json").write_text("{}")
    assert check_goldens.main([str(tmp_path)]) == 2
    assert "lgm.npz holds no arrays" in capsys.readouterr().err
    for name in ("lgm.npz", "lgm.json"):
        (tmp_path / name).unlink()
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    (tmp_path / "other.json").write_text("{}")
    assert check_goldens.main([str(tmp_path)]) == 2
    assert (
        "no check has this name; known are lgm, pipeline_mvdream, unet_mvdream, zero123pp"
        in capsys.readouterr().err
    )
