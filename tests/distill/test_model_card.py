from __future__ import annotations

import json
from dataclasses import replace

from distill.model_card import write_card
from distill.simulation.generate_shards import check_settings
from distill.train import DistillConfig


def test_a_card_tells_the_teachers_licence(tmp_path):
    quadruples, other = tmp_path / "quadruples", tmp_path / "other"
    about = {"teacher": "imagedream", "source": "a/b", "revision": None, "licence": "OpenRAIL"}
    for folder in (quadruples, other):
        folder.mkdir()
    check_settings(quadruples, {"teacher": "abc"}, 1, True, about)
    assert json.loads((quadruples / "simulate.json").read_text())["made_by"] == about
    (tmp_path / "model").mkdir()
    config = DistillConfig(quadruples=[str(quadruples), str(other)], pretrained_teacher_model="zero123plus")
    config = replace(config, objective=replace(config.objective, implicit=1.0))
    write_card(tmp_path / "model", config, 7)
    text = (tmp_path / "model" / "README.md").read_text()
    assert f"- quadruples: `{quadruples}` (teacher imagedream, source a/b, licence OpenRAIL)\n" in text
    assert f"- quadruples: `{other}`\n" in text
    assert "licence CC-BY-NC-4.0, notice its licence, CC-BY-NC-4.0, forbids commercial use" in text


def test_phase_1_and_verifier_are_named_with_their_licences(tmp_path, folders):
    here = str(folders["imagedream"])
    config = DistillConfig(pretrained_teacher_model="ashawkey/imagedream-ipmv-diffusers@main")
    config = replace(
        config, objective=replace(config.objective, implicit=1.0), start=replace(config.start, teacher=here)
    )
    write_card(tmp_path, config, 7)
    text = (tmp_path / "README.md").read_text()
    assert f"- phase 1: `{here}` (source imagedream, licence openrail)\n" in text
    assert "@main` (source ashawkey/imagedream-ipmv-diffusers, licence OpenRAIL)\n" in text
