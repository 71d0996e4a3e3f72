"""The notebook runs from top to bottom, and is stored without what it printed."""

import ast
import json

import pytest
from stand_ins.infer_command import ROOT

NOTEBOOK = json.loads((ROOT / "integrations/tour.ipynb").read_text("utf-8"))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(monkeypatch, capsys):
    """Each cell as Jupyter runs it, in one namespace; none needs more of Jupyter than that."""
    monkeypatch.chdir(ROOT / "integrations")
    names = {"__name__": "__main__"}
    values = []
    for number, cell in enumerate(c for c in NOTEBOOK["cells"] if c["cell_type"] == "code"):
        body = ast.parse("".join(cell["source"]), f"cell {number}").body
        last = [body.pop().value] if isinstance(body[-1], ast.Expr) else []
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
        values += [eval(compile(ast.Expression(e), f"cell {number}", "eval"), names) for e in last]
    shown = [value.size for value in values if hasattr(value, "size")]
    assert shown == [(256, 256), (6 * 192, 192)]
    printed = capsys.readouterr().out
    assert "M parameters" in printed and "dB" in printed and "lamp.glb: " in printed


def test_the_notebook_is_stored_clean():
    assert NOTEBOOK["nbformat"] == 4
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
