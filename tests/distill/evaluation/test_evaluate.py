from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageDraw
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io.shards import write_shard
from dd3g.meshes.mesh import Mesh
from dd3g.meshes.normals import corner_normals
from dd3g.meshes.rendering import Light, render_mesh
from dd3g.models import model_path
from dd3g.pepd import GeneratorConfig
from dd3g.rasterizer import rasterize
from distill.evaluation import compare as tool
from distill.evaluation.metrics import on_white, view_metrics
from distill.evaluation.options import Evaluation
from distill.evaluation.predictors import (
    Prediction,
    Target,
    all_white,
    flat_card,
    inflated_silhouette_row,
    mean_color_blob,
    true_shape,
)
from distill.evaluation.protocol import load_protocol
from distill.evaluation.report import (
    Sheet,
    evenly,
    print_table,
    sheet_tiles,
    sheet_views,
    titled_tiles,
    true_tiles,
    write_csv,
)
from distill.evaluation.scores import BANDS, compare_with_quadruples, score, summarise
from distill.evaluation.stlpips import STLPIPS
from distill.evaluation.targets import Targets, open_targets
from distill.mattes import Mattes
from distill.quadruples import Quadruple, encode, noise_of

ROOT = Path(__file__).parents[3]
AZIMUTHS = [0, 90, 180, 270, 20, 100, 110, 170, 250, 340]
RIG, NOVEL = [0, 1, 2, 3], list(range(4, 10))


def ellipsoid(color: tuple[float, float, float] = (0.8, 0.3, 0.2), radii=(0.4, 0.3, 0.4)) -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(3)
    vertices = (np.asarray(ball.vertices) * radii).astype(np.float32)
    return plain(vertices, np.asarray(ball.faces), color)


def plain(vertices: np.ndarray, faces: np.ndarray, color=(1.0, 1.0, 1.0)) -> Mesh:
    vertices, faces = vertices.astype(np.float32), faces.astype(np.int32)
    colors = np.broadcast_to(np.float32(color), (len(faces), 3, 3)).copy()
    uvs, none = np.zeros((len(faces), 3, 2), np.float32), np.full(len(faces), -1, np.int32)
    normals, solid = corner_normals(vertices, faces), np.zeros((0, 0, 0, 3), np.uint8)
    return Mesh(vertices, faces, normals, uvs, colors, none, [], vertices, solid)


def target_of(mesh: Mesh, name: str = "thing", style: str = "scan", size: int = 32, elevation=10.0) -> Target:
    cameras = Cameras.orbit(AZIMUTHS, [elevation] * 4 + [10.0] * 6, size)
    light = Light(1.0, np.array([[0.0, 1, 0]]), np.zeros((1, 3)))
    rgba = torch.from_numpy(render_mesh(mesh, cameras, light)[0]).movedim(-1, 1).float() / 255
    return Target(name, style, rgba, cameras, torch.tensor(AZIMUTHS).float(), RIG, NOVEL)


def perfect(target: Target, views: list[int]) -> Prediction:
    return Prediction(views, on_white(target.rgba[views]), target.rgba[views, 3:])


def only_rig_of(target: Target, views: list[int]) -> Prediction:
    chosen = [v for v in views if v in RIG]
    return Prediction(chosen, on_white(target.rgba[chosen]), None)


def only_rig(target: Target, views: list[int]) -> Prediction:
    return Prediction(RIG, on_white(target.rgba[RIG]), None)


@pytest.mark.slow
def test_perfect_and_white_rows():
    target = target_of(ellipsoid())
    best = score(target, perfect)
    assert best["novel"]["psnr"] == 100 and best["novel"]["iou"] == 1 and best["novel"]["holes"] == 0
    assert best["rig"]["sides"]["psnr"] == 100 and best["novel"]["color_error"] == pytest.approx(0, abs=1e-6)
    white = score(target, all_white(target))
    true = on_white(target.rgba[NOVEL])
    expected = (-10 * torch.log10((true - 1).square().mean((1, 2, 3)))).mean().item()
    assert white["novel"]["psnr"] == pytest.approx(expected, abs=1e-4)
    assert white["novel"]["iou"] == 0 and white["novel"]["holes"] == 1 and white["novel"]["leak"] == 0


def test_input_view_and_bands_are_kept_apart():
    target = target_of(ellipsoid())

    def wrong_at(views: list[int]):
        def draw(t: Target, wanted: list[int]) -> Prediction:
            best = perfect(t, wanted)
            rgb = best.rgb.clone()
            spoilt = [k for k, view in enumerate(wanted) if view in views]
            rgb[spoilt] = 1 - rgb[spoilt]
            return Prediction(best.views, rgb, best.alpha)

        return draw

    spoilt = score(target, wrong_at([0]))
    assert (
        spoilt["novel"]["psnr"] == 100
        and spoilt["input"]["psnr"] < 10
        and spoilt["rig"]["front"]["psnr"] < 10
    )
    spoilt = score(target, wrong_at([5, 6, 8]))  # 100, 110 and 250 degrees: all of the novel ones in 90-120
    assert spoilt["input"]["psnr"] == 100
    assert {b for b, v in spoilt["bands"].items() if v["psnr"] < 99} == {"90-120", "60-120"}
    assert set(spoilt["bands"]) == {"0-30", "90-120", "150-180", "60-120"}
    assert len(BANDS) == 7
    azimuth = torch.tensor([0.0, 90, 180, 270, 0, -30, 60, 240, 180, 330])
    edges = score(replace(target_of(ellipsoid()), azimuth=azimuth), perfect)
    assert set(edges["bands"]) == {"0-30", "30-60", "60-90", "120-150", "150-180", "60-120"}


def test_flat_card_equals_a_rendered_card():
    """The input's card as a mesh, in the colours of its four quarters, seen from everywhere."""
    size = 48
    cameras = Cameras.orbit(AZIMUTHS, [10.0] * 4 + [35.0] * 6, size)
    R = cameras.viewmats[0, :3, :3].numpy()
    corners, faces, colors = [], [], []
    for i, color in enumerate(np.eye(4, 3) * 0.8):
        x, y = 0.4 * (i % 2) - 0.4, 0.4 * (i // 2) - 0.4
        for dx, dy in ((0, 0), (0.4, 0), (0.4, 0.4), (0, 0.4)):
            corners.append((x + dx) * R[0] + (y + dy) * R[1])
        faces += [[4 * i, 4 * i + 1, 4 * i + 2], [4 * i, 4 * i + 2, 4 * i + 3]]
        colors += [color] * 2
    mesh = plain(np.array(corners), np.array(faces))
    mesh.colors = np.repeat(np.float32(colors)[:, None], 3, 1)
    light = Light(1.0, np.array([[0.0, 1, 0]]), np.zeros((1, 3)))
    rgba = torch.from_numpy(render_mesh(mesh, cameras, light)[0]).movedim(-1, 1).float() / 255
    target = Target("card", "x", rgba, cameras, torch.tensor(AZIMUTHS).float(), RIG, NOVEL)
    shown = flat_card(target)(target, list(range(10)))
    scores = view_metrics(shown.rgb, shown.alpha, rgba)
    assert scores["psnr"].min() > 22 and scores["psnr"][0] > 28
    broad = [0, 2, 4, 7, 9]
    assert scores["psnr"][broad].min() > 25 and scores["iou"][broad].min() > 0.93
    assert shown.alpha[1].mean() < 0.05 < shown.alpha[0].mean()
    chosen = flat_card(target)(target, [4, 0])
    torch.testing.assert_close(chosen.rgb, shown.rgb[[4, 0]])


def test_blob_has_the_size_and_colour_of_a_ball():
    target = target_of(ellipsoid(radii=(0.4, 0.4, 0.4)))
    result = score(target, mean_color_blob(target))
    assert result["novel"]["iou"] > 0.8 and result["input"]["iou"] > 0.8
    assert result["novel"]["color_error"] < 0.02
    moved = ellipsoid(radii=(0.2, 0.2, 0.2))
    moved.vertices = moved.vertices + np.float32([0.3, 0.2, 0])
    target = target_of(moved)
    assert score(target, mean_color_blob(target))["input"]["iou"] > 0.7


def test_summary_groups_by_style_and_counts():
    targets = [target_of(ellipsoid(), "a", "scan"), target_of(ellipsoid((0.1, 0.2, 0.9)), "b", "pbr")]
    scores = [score(t, all_white(t)) | {"seconds": 0.5} for t in targets]
    report = summarise(scores, seed=0)
    assert report["objects"] == 2 and set(report["by_style"]) == {"scan", "pbr"}
    mean = (scores[0]["novel"]["psnr"] + scores[1]["novel"]["psnr"]) / 2
    assert report["novel"]["psnr"]["mean"] == pytest.approx(mean, abs=1e-4)
    assert report["by_style"]["pbr"]["psnr"]["mean"] == pytest.approx(scores[1]["novel"]["psnr"], abs=1e-4)
    rig = summarise([score(targets[0], only_rig) | {"seconds": 1.0}], 0)
    assert rig["novel"] == {} and rig["rig"]["back"]["psnr"]["mean"] == 100
    assert rig["rig"]["back"]["iou"]["mean"] is None


class Stub(nn.Module):
    """A generator that answers with one ball; the noise decides how large it is."""

    config = GeneratorConfig(size=16, latent_shape=(4, 4, 2, 2))

    def __init__(self, radius: float = 0.3) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius))
        self.pictures: list[tuple[int, bool]] = []

    def forward(self, noise: Tensor, cameras: Cameras, image: Tensor) -> Gaussians:
        B = len(noise)
        scale = self.radius * (4 * noise.mean((1, 2, 3, 4))).exp()[:, None, None].expand(B, 1, 3)
        color = image[:, :3].sum((2, 3)) / image[:, 3:].sum((2, 3))
        quats = torch.tensor([1.0, 0, 0, 0]).expand(B, 1, 4)
        return Gaussians(torch.zeros(B, 1, 3), quats, scale, torch.full((B, 1), 0.99), color[:, None])

    def compiled(self) -> Stub:
        return self

    def generate(self, picture: Tensor, seed: int = 0, raw: bool = False) -> Gaussians:
        self.pictures.append((picture.shape[-1], raw))
        return self(torch.zeros(1, 4, 4, 2, 2), Cameras.default_rig(32), picture[None])[0]


def write_renders(folder: Path, count: int = 3, size: int = 32) -> None:
    """Shards as `dd3g data render` makes them, of boxes."""
    import trimesh

    from data_gen.meshes.objects import Options
    from data_gen.render import render_folder

    meshes = folder.parent / "meshes"
    meshes.mkdir(exist_ok=True)
    for i in range(count):
        trimesh.creation.box((1, 1 + i, 1)).export(meshes / f"box{i}.glb")
    render_folder(meshes, folder, Options(size=size, supersample=2, eval=True))


@pytest.mark.slow
def test_evaluate_writes_everything(tmp_path, monkeypatch):
    import dd3g.pepd

    write_renders(tmp_path / "renders")
    made = {"good": Stub(0.25), "none": Stub(0.01)}
    made["none"].config = replace(Stub.config, surface="off")
    monkeypatch.setattr(dd3g.pepd.Generator, "from_pretrained", lambda name, device="cpu": made[name])
    shape = (4, 4, 2, 2)
    rig = Cameras.default_rig(32)
    samples = []
    for i in range(3):
        image = target_of(ellipsoid((0.2, 0.2 + 0.2 * i, 0.7))).image
        noise = noise_of(shape, i)
        with torch.no_grad():
            drawn = rasterize(
                made["good"](noise[None], rig, image[None])[0], rig, background=0.0, antialiased=True
            )
        views = torch.cat([drawn.rgb / drawn.alpha.clamp(min=1e-6), drawn.alpha], 1).clamp(0, 1)
        samples.append(encode(Quadruple(noise, rig, image, views), f"q{i}"))
    write_shard(tmp_path / "quadruples" / "q-00000.tar", samples)

    asked = Evaluation(
        generator=["mine=good", "tiny=none"], teacher="analytic", quadruples=tmp_path / "quadruples",
        device="cpu", sheet_objects=2,
    )  # fmt: skip
    report = tool.evaluate(tmp_path / "renders", tmp_path / "out", asked)
    rows = report["rows"]
    assert list(rows) == [
        "all white", "flat card", "mean-colour blob", "inflated silhouette", "true shape in our decoder",
        "teacher", "mine (raw)", "mine", "tiny",
    ]  # fmt: skip
    assert rows["true shape in our decoder"]["novel"]["iou"]["mean"] > 0.9
    assert rows["teacher"]["novel"] == {} and rows["teacher"]["rig"]["sides"]["psnr"]["mean"] > 5
    assert rows["mine"]["novel"]["iou"]["mean"] > 0.35 > 0.05 > rows["tiny"]["novel"]["iou"]["mean"]
    assert rows["mine"]["novel"]["psnr"]["mean"] > rows["all white"]["novel"]["psnr"]["mean"] + 1
    gain = rows["mine"]["psnr_over_flat_card"]["mean"]
    difference = rows["mine"]["novel"]["psnr"]["mean"] - rows["flat card"]["novel"]["psnr"]["mean"]
    assert gain == pytest.approx(difference, abs=1e-3)
    same = report["against_teacher"]["mine"]
    for view in ("front", "sides", "back"):
        assert same["same_noise"][view]["mean"] > 45 > 40 > same["other_noise"][view]["mean"]
    assert report["against_teacher"]["tiny"]["same_noise"]["front"]["mean"] < 20
    assert report["data"]["objects"] == 3 and report["commit"] and report["versions"]["torch"]

    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored == json.loads(json.dumps(report))
    with open(tmp_path / "out" / "objects.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 9 * 3 and {r["id"] for r in lines} == {"box0", "box1", "box2"}
    mine = [float(r["psnr"]) for r in lines if r["row"] == "mine"]
    assert np.mean(mine) == pytest.approx(rows["mine"]["novel"]["psnr"]["mean"], abs=1e-3)
    from PIL import Image

    assert Image.open(tmp_path / "out" / "sheet.png").size == (7 * 34 - 2, 2 * 6 * 34 - 2)
    assert not list((tmp_path / "out").glob(".*"))

    again = tool.evaluate(tmp_path / "renders", tmp_path / "again", replace(asked, sheet_objects=0))
    for label in rows:
        a, b = dict(again["rows"][label]), dict(rows[label])
        for measured in ("seconds_per_object", "latency", "peak_mb"):
            assert a.pop(measured) and b.pop(measured)
        assert a == b
    print_table(report)
    made["other"] = Stub()
    made["other"].config = GeneratorConfig(size=16, latent_shape=(4, 4, 4, 4))
    with pytest.raises(UserError, match=r"noise of \(4, 4, 2, 2\), and b takes \(4, 4, 4, 4\)"):
        other = Evaluation(generator=["b=other"], quadruples=tmp_path / "quadruples", device="cpu")
        tool.evaluate(tmp_path / "renders", tmp_path / "x", other)
    made["teacher"] = made["good"]
    with pytest.raises(UserError, match="'teacher' is the name of another row"):
        asked = Evaluation(generator=["teacher"], teacher="analytic", device="cpu")
        tool.evaluate(tmp_path / "renders", tmp_path / "x", asked)


def test_missing_cells_in_the_csv(tmp_path):
    target = target_of(ellipsoid())
    rows = {"a": [score(target, all_white(target))], "b": [score(target, only_rig)]}
    for (found,) in rows.values():
        found["seconds"] = 0.5
    write_csv(tmp_path / "x.csv", rows)
    lines = list(csv.DictReader(open(tmp_path / "x.csv", newline="")))
    assert lines[1]["psnr"] == "" and float(lines[1]["back_psnr"]) == 100 and lines[1]["psnr_60_120"] == ""


def test_quadruples_count_and_limit(tmp_path):
    image, rig = target_of(ellipsoid()).image, Cameras.default_rig(32)
    views = torch.ones(4, 4, 32, 32)
    quadruples = [encode(Quadruple(noise_of((4, 4, 2, 2), i), rig, image, views), f"q{i}") for i in range(3)]
    write_shard(tmp_path / "q-00000.tar", quadruples)
    assert compare_with_quadruples(Stub(), tmp_path, 2, 0)["quadruples"] == 2
    assert compare_with_quadruples(Stub(), tmp_path, 0, 0)["same_noise"]["back"]["n"] == 3


def test_quadruples_of_a_teacher_that_draws_on_grey(tmp_path):
    """The generator's answer, drawn on the teacher's ground, is compared there: here they are the same."""
    image, rig, stub = target_of(ellipsoid()).image, Cameras.default_rig(32), Stub()
    noise = noise_of((4, 4, 2, 2), 0)
    with torch.no_grad():
        drawn = rasterize(stub(noise[None], rig, image[None])[0], rig, background=0.5, antialiased=True)
    mattes = Mattes(drawn.alpha, torch.ones(4), torch.full((4, 3), 0.5), "ground")
    write_shard(
        tmp_path / "q-00000.tar", [encode(Quadruple(noise, rig, image, drawn.rgb, mattes=mattes), "q")]
    )
    found = compare_with_quadruples(stub, tmp_path, 0, 0)["same_noise"]
    assert all(found[view]["mean"] > 45 for view in ("front", "sides", "back"))


def test_stlpips_with_its_own_weights():
    path = model_path("stlpips_alex")
    if path is None:
        pytest.skip("needs `dd3g models fetch stlpips_alex`")
    metric = STLPIPS(path)
    target = target_of(ellipsoid(), size=64)
    picture = on_white(target.rgba[:1])
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(picture.shape, generator=g)
    little, much = (metric(picture, (picture + s * noise).clamp(0, 1)).item() for s in (0.02, 0.2))
    shifted = metric(picture, picture.roll(1, -1)).item()
    other = metric(picture, on_white(target_of(ellipsoid((0.1, 0.7, 0.2)), size=64).rgba[:1])).item()
    assert 0 < little < much and shifted < 0.5 * other


@pytest.mark.slow
def test_bad_calls_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="two generators are called 'a'"):
        Evaluation(generator=["a=x", "a=y"]).generators
    named = Evaluation(generator=["nano", "b=out/x=1"]).generators
    assert named == {"nano": "nano", "b": "out/x=1"}
    command = [sys.executable, "-m", "tools.evaluate", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    meta = {"variant": 1, "viewmats": torch.eye(4)[None].tolist(), "K": torch.eye(3).tolist(), "size": 8}
    write_shard(tmp_path / "renders-00000.tar", [{"__key__": "x-1", "json": json.dumps(meta)}])
    with pytest.raises(UserError, match="no plain variant"):
        Targets([tmp_path])


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    write_renders(tmp_path / "renders", 1)
    monkeypatch.setattr("distill.evaluation.work.score", lambda *_: pytest.fail("evaluated first"))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder .*taken"):
        tool.evaluate(tmp_path / "renders", tmp_path / "taken", Evaluation(device="cpu"))


@pytest.mark.parametrize(
    ("there", "count", "wanted"),
    [(2, 10, [0, 1]), (1, 10, [0]), (30, 3, [0, 14, 29]), (4, 1, [0]), (5, 5, [0, 1, 2, 3, 4])],
)
def test_a_sheet_shows_every_object_once(there, count, wanted):
    assert evenly(there, count) == wanted


@pytest.fixture(scope="module")
def three_sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for size in (32, 128, 256):
        write_renders(folder / str(size), 2, size)
    return folder


def test_sizes_of_an_object_are_one_target(three_sizes):
    folders = [three_sizes / name for name in ("256", "32", "128")]  # in any order
    targets = Targets(folders)
    target = targets[1]
    assert len(targets) == 2 and target.size == 32
    assert [t.size for t in target.finer] == [128, 256]
    assert target.finest is target.finer[-1]
    assert all(t.id == "box1" and t.novel == target.novel for t in (target, *target.finer))
    torch.testing.assert_close(target.finest.cameras.viewmats, target.cameras.viewmats)
    small = torch.nn.functional.avg_pool2d(on_white(target.finest.image)[None], 8)[0]
    assert (small - on_white(target.image)).abs().mean() < 0.01
    assert len(Targets(folders, 1)) == 1


def test_sizes_that_do_not_belong_together_are_refused(three_sizes, tmp_path):
    write_renders(tmp_path / "other", 1, 64)
    with pytest.raises(UserError, match="does not hold the objects and views of"):
        Targets([three_sizes / "32", tmp_path / "other"])
    write_renders(tmp_path / "again", 2, 32)
    with pytest.raises(UserError, match="have one size: give each size once"):
        Targets([three_sizes / "32", tmp_path / "again"])
    with pytest.raises(UserError, match="meshes holds no renders"):
        open_targets([three_sizes / "32", three_sizes / "meshes"], load_protocol("house"))


def test_what_people_see_is_measured_at_its_own_size(three_sizes):
    target = Targets([three_sizes / name for name in ("32", "128", "256")])[0]
    asked = []

    def draw(at: Target, views: list[int]) -> Prediction:
        asked.append((at.size, views))
        best = perfect(at, views)
        if at.size == 128:  # half the alpha of everything
            return Prediction(views, best.rgb, 0.5 * best.alpha)
        return Prediction(views, best.rgb - 0.1 * (at.size == 256), best.alpha)

    found = score(target, draw)
    assert asked == [(32, list(range(20))), (128, target.novel), (256, [0])]
    assert found["input"]["psnr"] == 100 and found["input"]["psnr_256"] == pytest.approx(20, abs=1e-3)
    assert found["novel"]["psnr"] == 100 and found["novel"]["iou"] == 1
    assert 0.85 < found["novel"]["alpha_fuzz_128"] < 1  # all but the band along the edge
    alone = score(replace(target, finer=()), perfect)
    assert alone["novel"]["alpha_fuzz_32"] < 0.01 and not {"psnr_256", "alpha_fuzz_128"} & {*alone["input"]}


@pytest.mark.slow
def test_generators_see_the_finest_picture_and_make_two_rows(three_sizes, tmp_path, monkeypatch):
    import dd3g.pepd

    stub = Stub()
    monkeypatch.setattr(dd3g.pepd.Generator, "from_pretrained", lambda name, device="cpu": stub)
    folders = [three_sizes / name for name in ("32", "128", "256")]
    words = ["metrics=[]"]
    asked = Evaluation(generator=["mine=x"], limit=1, sheet_objects=1, changes=words, device="cpu")
    report = tool.evaluate(folders, tmp_path / "out", asked)
    assert stub.pictures == [(256, True)] * 2 + [(256, False)] * 2  # once to warm up
    assert report["rows"]["mine"]["novel"] == report["rows"]["mine (raw)"]["novel"]
    assert (report["data"]["size"], report["data"]["fine_size"], report["data"]["input_size"]) == (
        32,
        128,
        256,
    )
    with open(tmp_path / "out" / "objects.csv", newline="") as stream:
        lines = {line["row"]: line for line in csv.DictReader(stream)}
    assert float(lines["flat card"]["input_psnr_256"]) > 25 > float(lines["mine"]["input_psnr_256"])
    assert float(lines["all white"]["alpha_fuzz_128"]) == 0 < float(lines["mine"]["alpha_fuzz_128"])
    from PIL import Image

    assert Image.open(tmp_path / "out" / "sheet.png").size == (7 * 258 - 2, 4 * 258 - 2)


def test_rows_without_a_network_on_a_ball():
    """A ball is what a disc inflates to: there the silhouette alone is right from every side."""
    target = target_of(ellipsoid(radii=(0.28, 0.28, 0.28)), size=64, elevation=0.0)
    inflated = score(target, inflated_silhouette_row(target))
    assert inflated["novel"]["iou"] > 0.88 and inflated["novel"]["color_error"] < 0.02
    assert inflated["novel"]["alpha_fuzz_64"] < 0.04 and inflated["novel"]["holes"] < 0.005
    flat = target_of(ellipsoid(radii=(0.3, 0.3, 0.1)), size=64)  # which the silhouette does not tell
    told, guessed = (
        score(flat, row(flat))["rig"]["sides"]["iou"] for row in (true_shape, inflated_silhouette_row)
    )
    assert told > 0.7 > 0.5 > guessed


def test_sheets_show_the_views_that_are_named(tmp_path):
    azimuths = [0.0, 90, 180, 270, 50, 50, 131, 20]
    cameras = Cameras.orbit(azimuths, [10.0] * 4 + [40.0, 5.0, 15.0, 10.0], 16)
    rgba = torch.rand(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    rgba[:, 3] = 1
    target = Target("thing", "x", rgba, cameras, torch.tensor(azimuths), RIG, [4, 5, 6, 7])
    assert sheet_views(target) == [0, 5, 1, 6, 2, 3]
    sheet = Sheet(tmp_path, page=2)
    for _ in range(3):
        shown = {"right": sheet_tiles(target, perfect), "rig only": sheet_tiles(target, only_rig_of)}
        sheet.add(target.id, {"": true_tiles(target)} | shown)
    sheet.finish()
    assert [p.name for p in sheet.paths] == ["sheet.png", "sheet-2.png"]
    from PIL import Image

    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape == (2 * 3 * 18 - 2, 7 * 18 - 2, 3)
    assert np.asarray(Image.open(tmp_path / "sheet-2.png")).shape == (3 * 18 - 2, 7 * 18 - 2, 3)
    tile = lambda row, column: page[18 * row : 18 * row + 16, 18 * column : 18 * column + 16]  # noqa: E731
    true = (rgba[[0, 5, 1, 6, 2, 3], :3] * 255).round().byte().movedim(1, -1).numpy()
    for column in range(6):
        assert (tile(0, column + 1) == true[column]).all() and (tile(1, column + 1) == true[column]).all()
    assert (tile(2, 2) == 255).all() and (tile(2, 3) == true[2]).all()


def test_true_views_of_a_sheet_tell_their_azimuths(monkeypatch):
    azimuths = [0.0, 90, 180, 270, 50, 131]
    rgba = torch.ones(6, 4, 96, 96)
    target = Target(
        "x", "x", rgba, Cameras.orbit(azimuths, [10.0] * 6, 96), torch.tensor(azimuths), RIG, [4, 5]
    )
    written: list[str] = []
    draw = ImageDraw.ImageDraw.multiline_text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "multiline_text",
        lambda d, at, text, **k: (written.append(text), draw(d, at, text, **k)),
    )
    tiles = titled_tiles(target)
    assert written == ["0°", "50°", "90°", "131°", "180°", "270°"]
    ink = (tiles < 0.5).any(1)  # in the upper left corner only
    assert ink[:, :16, :32].flatten(1).any(1).all() and not ink[:, 16:].any() and not ink[:, :, 32:].any()
