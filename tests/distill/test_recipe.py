"""One command from meshes to weights: within its minutes, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stand_ins.tiny_objects import write_cube, write_quadruples
from stand_ins.training_runs import in_this_process

from dd3g.io.shards import write_shard
from dd3g.pepd import Generator
from distill import recipe
from distill.recipe import SIZES, Recipe, RecipeOptions, main, trained

SMALL = (
    "network.fine=8 network.widths=[8,16] network.width=16 network.depth=1 network.heads=2 network.bins=8 "
    "network.residual_hidden=8 network.color_bins=4 objective.steps=8 pixels=32 held_out=0.4 "
    "validation_steps=2 logging_steps=1 train_batch_size=2 use_cpu=true"
).split()


def words(folder, *more, steps=2):
    train = [word for option in (*SMALL, f"max_train_steps={steps}") for word in ("--train", option)]
    start = ["nano", "--minutes", "600", "--data", str(folder / "meshes"), "-o", str(folder / "out")]
    return [*start, *train, *more]


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    for k in range(6):
        write_cube(folder / "meshes" / f"cube{k}" / "model.glb", 0.5 + 0.1 * k)
    write_cube(folder / "test" / "cube" / "model.glb", 0.75)
    for part in ("meshes", "test"):  # one of many that cannot be read must not stop the others
        (folder / part / "broken.glb").write_bytes(b"glTF, or so it says")
    return folder


@pytest.mark.slow
def test_from_meshes_to_weights_and_on(meshes, monkeypatch, capfd, forked_workers):
    """What ends each stage is its work: the minutes are more than any machine needs."""
    monkeypatch.setattr(recipe, "run_stage", in_this_process)
    assert main(words(meshes, "--test", str(meshes / "test"))) == 0
    weights = meshes / "out" / "weights"
    generator = Generator.from_pretrained(weights)
    assert generator.config.shape is not None
    picture = torch.zeros(4, 64, 64)
    picture[:, 16:48, 16:48] = 0.7
    picture[3, 16:48, 16:48] = 1
    assert len(generator.generate(picture).means) > 500
    assert {t.dtype for t in generator.state_dict().values() if t.is_floating_point()} == {torch.float32}
    card = (weights / "MODEL_CARD.md").read_text()
    assert (
        f"dd3g recipe nano --minutes 600 --data {meshes / 'meshes'} --test {meshes / 'test'} --train" in card
    )
    assert "| nano |" in card and "2 steps" in card and str(meshes / "meshes") in card
    assert (meshes / "out/evaluation/sheet.png").exists()
    first = trained(meshes / "out/shape")
    capfd.readouterr()

    assert main(words(meshes)) == 2
    assert "continue with --resume" in capfd.readouterr().err
    assert main(words(meshes, "--resume", "--generator", "other")) == 2
    assert "generator nano (now other)" in capfd.readouterr().err
    assert main(words(meshes, "--resume", "--networks", "2")) == 2
    assert "networks 1 (now 2)" in capfd.readouterr().err
    begun = json.loads((meshes / "out/recipe.json").read_text())
    assert begun.pop("networks") == 1  # as in a folder that was begun before there could be several
    (meshes / "out/recipe.json").write_text(json.dumps(begun))
    assert main(words(meshes, "--resume", "--networks", "2")) == 2
    assert "networks 1 (now 2)" in capfd.readouterr().err
    assert main(words(meshes, "--resume", steps=4)) == 0
    assert trained(meshes / "out/shape") > first > (1, 0)
    lines = (meshes / "out/shape/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)] == [1, 2, 3, 4]


def test_the_command_of_the_card_names_all_that_made_the_weights():
    made = {"data": [Path("a b")], "generator": "mine", "train": ["seed=1"]}
    options = RecipeOptions(**made, test=Path("c"), output=Path("elsewhere"))
    assert Recipe("nano", 2.5, options).command == (
        "dd3g recipe nano --minutes 2.5 --data 'a b' --test c --generator mine --train seed=1"
    )
    assert Recipe("small", 9.0, RecipeOptions()).command == "dd3g recipe small --minutes 9"


@pytest.mark.slow
def test_without_meshes_it_makes_up_its_own(tmp_path, monkeypatch, forked_workers):
    asked, seeds = [], []

    def stage(module, *arguments, seconds=None, **_):
        few = ("--count", "3", "--resolution", "24") if module == "data_gen.make_objects" else ()
        asked.append((module, seconds))
        seeds.extend(word for word in arguments if word.startswith("seed="))
        in_this_process(module, *arguments, *few)

    monkeypatch.setattr(recipe, "run_stage", stage)
    without = words(tmp_path, "--networks", "2")
    del without[3:5]  # --data and its folder
    assert main(without) == 0
    assert asked[0] == ("data_gen.make_objects", 60 * 600 * recipe.MAKING)
    assert [module for module, _ in asked[1:]] == ["data_gen.render", *2 * ["distill.train_shape"]]
    assert seeds == ["seed=0", "seed=1"]
    made = Generator.from_pretrained(tmp_path / "out/weights")
    assert made.config.shape_networks == len(made.shape) == 2
    assert not torch.equal(made.shape[0].stem.weight, made.shape[1].stem.weight)
    card = (tmp_path / "out/weights/MODEL_CARD.md").read_text()
    assert (
        "dd3g recipe nano --minutes 600 --networks 2 --train" in card
        and "2 and 2 steps" in card
        and f"meshes in {tmp_path / 'out/objects'}" in card
    )


def test_made_up_objects_stay_those_that_were_drawn(tmp_path, monkeypatch):
    """More of them would be other renders, which a folder that was begun refuses."""
    asked = []
    monkeypatch.setattr(recipe, "run_stage", lambda *words, **_: asked.append(words[0]))
    (made := Recipe("nano", 1.0, RecipeOptions(output=tmp_path))).objects(6.0)
    (tmp_path / "renders-0").mkdir()
    assert made.objects(6.0) == tmp_path / "objects" and asked == ["data_gen.make_objects"]


@pytest.mark.parametrize(
    ("minutes", "rendering"),
    [(5, [10.5 * 60, 16 * 60]), (10, [10.5 * 60, 11 * 60]), (12, [10.5 * 60, 9 * 60])],
)
@pytest.mark.parametrize("test", [False, True])
def test_the_minutes_are_shared(tmp_path, monkeypatch, minutes, rendering, test):
    """Of an hour, by a clock on which rendering one folder takes some minutes."""
    now, asked = [5000.0], []

    def stage(module, *arguments, seconds=None, **_):
        asked.append((module, arguments, seconds))
        if module == "data_gen.render":
            now[0] += 60 * minutes
            place = Path(arguments[arguments.index("-o") + 1])
            place.mkdir(parents=True)
            write_shard(place / "renders-00000.tar", [{"__key__": "0", "json": "{}"}])

    monkeypatch.setattr(recipe, "run_stage", stage)
    monkeypatch.setattr(recipe, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for name, answer in {"assemble": tmp_path, "evaluate": "", "describe": None}.items():
        monkeypatch.setattr(Recipe, name, lambda *_, answer=answer: answer)
    for name in "abc":
        write_cube(tmp_path / name / "model.glb", 0.5)
    monkeypatch.chdir(tmp_path)
    words = ["nano", "--minutes", "60", "--data", "a", "--data", "b", "-o", str(tmp_path / "out")]
    assert main([*words, *(["--test", "c"] if test else [])]) == 0
    assert [seconds for module, _, seconds in asked if module == "data_gen.render"] == rendering
    module, arguments, _ = asked[-1]
    (given,) = [word for word in arguments if word.startswith("max_minutes=")]
    spare = 60 * (0.12 if test else 0.02) + 20 / 60
    left = max(60 - 2 * minutes - spare, 1 / 60)
    assert module == "distill.train_shape" and given == f"max_minutes={left:.3f}"


@pytest.mark.slow
def test_meshes_of_which_none_can_be_drawn(tmp_path, capfd):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes/broken.glb").write_bytes(b"glTF, or so it says")
    assert main(words(tmp_path)) == 2
    error = capfd.readouterr().err
    assert "broken.glb: it is damaged, or not a .glb (" in error
    assert error.splitlines()[-1] == f"error: {tmp_path}/meshes: none of its meshes could be drawn: see above"


@pytest.mark.parametrize("passes", [True, False])
def test_cuda_is_tried_beside_the_rendering(tmp_path, monkeypatch, capfd, passes):
    """And what it says of it counts before anything is trained."""
    write_cube(tmp_path / "meshes" / "model.glb", 0.5)
    (tmp_path / "smoke.py").write_text(f"import time; time.sleep(1); raise SystemExit({0 if passes else 2})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = []

    def started(module, *arguments):
        asked.append(module)
        return original(module.removeprefix("distill."), *arguments)

    original = recipe.started
    monkeypatch.setattr(recipe, "started", started)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("train", "assemble", "describe"):
        monkeypatch.setattr(Recipe, name, lambda *_, name=name: asked.append(name))
    monkeypatch.setattr(Recipe, "renders", lambda *_: asked.append("renders"))
    assert main(words(tmp_path)) == (0 if passes else 2)
    assert asked == ["distill.smoke", "renders", *(["train", "assemble", "describe"] if passes else [])]
    assert ("`distill.smoke` ended with 2: see above" in capfd.readouterr().err) is not passes
    checkpoint = tmp_path / "out/shape/checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 5, "rate": {"minutes": 1.5}}')
    asked.clear()
    assert main(words(tmp_path, "--resume")) == 0 and "distill.smoke" not in asked


def test_networks_share_the_time_that_is_left(tmp_path, monkeypatch):
    now, asked = [5000.0], []

    def stage(_module, *arguments):
        found = dict(word.split("=", 1) for word in arguments if "=" in word)
        asked.append((Path(found["output_dir"]).name, float(found["max_minutes"]), found["seed"]))
        if not (tmp_path / "shape").exists():
            now[0] += 60 * float(found["max_minutes"]) - 60  # it stops early, which the next may use
        else:
            now[0] += 60 * (float(found["max_minutes"]) - trained(tmp_path / asked[-1][0])[1])

    monkeypatch.setattr(recipe, "run_stage", stage)
    monkeypatch.setattr(recipe, "time", SimpleNamespace(monotonic=lambda: now[0]))
    Recipe("nano", 32.0, RecipeOptions(output=tmp_path, networks=3, train=["seed=5"])).train([], 120.0)
    assert asked == [("shape", 10.0, "5"), ("shape-1", 10.5, "6"), ("shape-2", 11.5, "7")]
    for name, minutes in {"shape": 10.0, "shape-1": 1.0, "shape-2": 2.0}.items():  # killed in the second one
        (checkpoint := tmp_path / name / "checkpoint-5").mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"step": 5, "rate": {"minutes": minutes}}))
    asked.clear()
    Recipe("nano", 11.0, RecipeOptions(output=tmp_path, networks=3)).train([], 120.0)
    assert asked == [("shape-1", 6.0, "1"), ("shape-2", 6.0, "2")]


@pytest.mark.parametrize("there", [False, True])
def test_a_gpu_does_not_wait_for_pngs(tmp_path, monkeypatch, there):
    asked = []
    monkeypatch.setattr(recipe, "run_stage", lambda *words: asked.extend(words))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    options = RecipeOptions(output=tmp_path, train=["dataloader_num_workers=3"])
    Recipe("nano", 0.0, options).train([tmp_path], 1.0)
    assert (f"unpacked_dir={tmp_path / 'unpacked'}" in asked) == there
    assert ("dataloader_num_workers=12" in asked) == there
    workers = [word for word in asked if word.startswith("dataloader_num_workers")]
    assert workers[-1] == "dataloader_num_workers=3"  # what was asked for holds


def test_an_evaluation_that_time_does_not_suffice_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/table.md").write_text("of other weights")
    asked = []
    monkeypatch.setattr(recipe, "run_stage", lambda *words, seconds, **_: asked.append((words, seconds)))
    monkeypatch.setattr(recipe, "time", SimpleNamespace(monotonic=lambda: 70.0))
    asked_for = RecipeOptions(output=tmp_path)
    said = Recipe("nano", 0.5, asked_for).evaluate(tmp_path / "weights", Path("held out"))
    ((words, seconds),) = asked
    assert words[:2] == ("distill.evaluation", "held out") and seconds == 30
    assert words[-2:] == ("--device", "cpu")  # on all cores, and where no compiler makes a GPU's rasteriser
    assert said.startswith("Not evaluated in time: `python -m distill.evaluation 'held out' --generator ")
    assert said in capsys.readouterr().err


def test_what_cannot_be_made(tmp_path, capsys):
    assert main(["huge", "--minutes", "1", "--data", "x", "-o", str(tmp_path / "out")]) == 2
    assert "no recipe 'huge': give nano, small, base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_hours_would_end_in_is_refused_at_the_start(tmp_path, monkeypatch, capsys):
    """And a first try that was refused does not stand in the way of the next."""
    monkeypatch.setattr(recipe, "run_stage", lambda *_, **__: pytest.fail("a stage was started"))
    out, meshes, none = tmp_path / "out", tmp_path / "meshes", tmp_path / "none"
    write_cube(meshes / "a" / "model.glb", 0.5)
    (empty := tmp_path / "empty").mkdir()
    start = ["nano", "--minutes", "600", "-o", str(out), "--data", str(meshes)]
    cases = [
        (["--test", str(t)], f"--test {t} and --data {meshes} hold") for t in (meshes, meshes / "a", tmp_path)
    ]
    for option in ("--quadruples", "--data", "--test"):
        cases.append(([option, str(none)], f"{option} {none}: there is no such folder"))
        if option != "--quadruples":
            cases.append(([option, str(empty)], f"{empty} holds no objects: give a folder of meshes"))
    (small := tmp_path / "quadruples").mkdir()
    write_quadruples(small)
    cases.append((["--quadruples", str(small)], "has views of 32 pixels: nano takes 64"))
    cases.append((["--train", "nosuch=1"], "--train: configuration: nosuch: Key 'nosuch' not in"))
    cases.append((["--train", "seed=x"], "; dd3g train-shape --help lists every key"))
    cases.append((["--train", "lr_scheduler=cosine"], "--train lr_scheduler=cosine: a recipe ends with its"))
    cases.append((["--generator", str(tmp_path)], "config.json"))
    for more, message in cases:
        assert main([*start, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and "begun" not in error
    assert [path.name for path in out.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff"])
def test_a_damaged_record_of_what_was_begun(tmp_path, capsys, damage):
    (tmp_path / "shape").mkdir()
    (tmp_path / "recipe.json").write_bytes(damage)
    assert main(["nano", "--minutes", "1", "-o", str(tmp_path), "--resume"]) == 2
    assert f"{tmp_path}/recipe.json is damaged: delete it, or give another" in capsys.readouterr().err


def test_sizes_are_those_of_the_configurations():
    from dd3g.command.configuration import parse
    from distill.train_shape import ShapeConfig

    for size, pixels in SIZES.items():
        network = parse(["--config", size], ShapeConfig).network
        assert network.size == pixels


@pytest.mark.parametrize("damage", ["{}", '{"rate": {"minutes": 9', None])
def test_a_damaged_checkpoint_does_not_stop_a_recipe(tmp_path, damage):
    """Its trainer goes on from the one before."""
    for step, minutes in ((5, 1.5), (10, 3.0)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = json.dumps({"step": step, "rate": {"minutes": minutes}})
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text(state)
    assert trained(tmp_path) == (10, 3.0)
    (tmp_path / "checkpoint-10/state.json").unlink()
    if damage:
        (tmp_path / "checkpoint-10/state.json").write_text(damage)
    assert trained(tmp_path) == (5, 1.5)
    assert trained(tmp_path / "none") == (0, 0.0)
