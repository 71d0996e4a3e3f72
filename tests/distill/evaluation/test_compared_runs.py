"""Comparisons: pairs within a run, and runs that may or may not share a table."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from stand_ins.tinted_rows import DARK, GREY, SMALL, WHITE, run

from dd3g.errors import UserError
from distill.evaluation import compare as tool
from distill.evaluation import paired, tables
from distill.evaluation.__main__ import main


def test_differences_are_paired_within_styles_and_bands():
    def row(style: str, psnr: float, **bands: float) -> dict:
        by = {name.strip("b").replace("_", "-"): {"psnr": value} for name, value in bands.items()}
        return {"style": style, "novel": {"psnr": psnr}, "bands": by}

    first = [row("pbr", 10, b60_90=9), row("scan", 20, b60_90=8, b0_30=5), row("scan", 30)]
    second = [row("pbr", 10, b60_90=11), row("scan", 22, b60_90=10, b0_30=7), row("scan", 34)]
    found = tool.grouped_differences({"a": first, "b": second, "c": [{"style": "pbr"}] * 3}, 0)
    assert [(d["a"], d["b"], d["group"], d["mean"], d["n"], d["p"]) for d in found] == [
        ("b", "a", "pbr", 0.0, 1, 1.0),
        ("b", "a", "scan", 3.0, 2, 0.5),
        ("b", "a", "0-30", 2.0, 1, 1.0),
        ("b", "a", "60-90", 2.0, 2, 0.5),
    ]
    alone = tool.grouped_differences({"a": first[1:], "b": second[1:]}, 0)
    assert "scan" not in [d["group"] for d in alone]  # one style is all objects


def test_seeds_show_diversity_and_the_best_of_them(tmp_path, boxes, rows):
    report = run(boxes, tmp_path, [GREY], seeds=3, limit=1)
    found = {k: v["mean"] for k, v in report["rows"]["grey"]["seeds"].items()}
    assert found["psnr_best"] >= found["psnr_mean"]
    # Seed 0 is plain; two noises of deviation 0.02 are 0.02 * sqrt 2 apart.
    apart = [10 * np.log10(1 / v) for v in (0.0004, 0.0004, 0.0008)]
    assert found["psnr_apart"] == pytest.approx(np.mean(apart), abs=0.4)


# ---- dd3g evaluate compare -------------------------------------------------------------------------------


def test_two_runs_of_one_protocol_share_a_table(tmp_path, boxes, rows, capsys):
    run(boxes, tmp_path / "a", [GREY, WHITE])
    run(boxes, tmp_path / "b", [GREY, DARK])
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "evaluation.json")]) == 0
    out = capsys.readouterr().out
    assert [line.split(" |")[0] for line in out.splitlines()[2:5]] == ["| grey", "| bright", "| dark"]
    assert re.search(r"dark - bright: psnr [+-]\d+\.\d+ \[.*\], p 0\.\d+, n 3", out)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--metric", "iou", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    assert {(d["a"], d["b"]) for d in found} == {("dark", "grey"), ("dark", "bright")}


def test_rows_of_one_label_get_the_names_of_their_runs(tmp_path, boxes, rows):
    run(boxes, tmp_path / "a", ["tinted=mine=0.5"])
    run(boxes, tmp_path / "b", ["tinted=mine=0.6"])
    reports = paired.load_reports([tmp_path / "a", tmp_path / "b"])
    joined = paired.join(reports, ["a", "b"])
    assert list(joined["rows"]) == ["mine (a)", "mine (b)"]
    (pair,) = paired.between(joined, "psnr", 0)
    x, y = (np.array(joined["per_object"][k]["psnr"]) for k in ("mine (b)", "mine (a)"))
    assert pair["mean"] == pytest.approx((x - y).mean(), abs=1e-4)
    with pytest.raises(UserError, match="no metric 'fid' in these results: choose from"):
        paired.between(joined, "fid", 0)


def test_other_protocols_and_objects_refuse_to_share_a_table(tmp_path, boxes, rows, capsys):
    run(boxes, tmp_path / "a", [GREY])
    run(boxes, tmp_path / "b", [GREY], [*SMALL, "fovy=50"])
    run(boxes, tmp_path / "c", [GREY], limit=2)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    err = capsys.readouterr().err
    assert "their numbers do not compare (different: fovy); evaluate both by one protocol" in err
    assert err.count("\n") == 1
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "saw different objects (3 and 2; different: box2)" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a")]) == 2
    (tmp_path / "x.json").write_text("{}")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "x.json")]) == 2
    assert "x.json is not an evaluation.json of this version" in capsys.readouterr().err


def test_other_weights_of_a_metric_refuse_to_share_a_table(tmp_path, boxes, rows):
    """One protocol, but LPIPS of other weights; one that was not measured is no hindrance."""
    net = {"library": "torchmetrics 1.0", "net": "LPIPS vgg", "weights": "0" * 16}
    for name, about in (("a", net), ("b", net | {"weights": "1" * 16}), ("c", {"missing": "no weights"})):
        run(boxes, tmp_path / name, [f"tinted={name}=0.5"])
        path = tmp_path / name / "evaluation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"lpips-vgg": about}}))
    with pytest.raises(UserError, match="measured lpips-vgg with LPIPS vgg 0{16}, .*/b with LPIPS vgg 1{16}"):
        paired.load_reports([tmp_path / "a", tmp_path / "b"])
    reports = paired.load_reports([tmp_path / "c", tmp_path / "a"])
    assert paired.join(reports, ["c", "a"])["metrics"] == {"lpips-vgg": net}


def test_keys_of_the_table_have_headings():
    assert tables.heading("st_lpips_128") == "ST-LPIPS 128" and tables.heading("f_0.1") == "F 0.1"
    assert tables.heading("psnr") == "PSNR" and tables._start("holes_eroded") == ""
    assert tables._tex("a_b & 50 %") == r"a\_b \& 50 \%"
