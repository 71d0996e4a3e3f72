from __future__ import annotations

import pytest

from dd3g.errors import UserError
from distill.evaluation import rows
from distill.evaluation.predictors import all_white
from distill.evaluation.rows import BASELINES, KINDS, Settings, labelled, make_rows


def test_a_new_kind_is_one_line(monkeypatch):
    seen = []

    def made(value: str, settings: Settings) -> dict:
        label, path = labelled(value)
        seen.append((path, settings.seed))
        return {label: all_white, f"{label} twice": all_white}

    monkeypatch.setitem(KINDS, "mine", made)
    found = make_rows(["mine=a=out/x=1", "baseline=flat card", "mine=nano"], Settings(seed=3))
    assert list(found) == ["a", "a twice", "flat card", "nano", "nano twice"]
    assert seen == [("out/x=1", 3), ("nano", 3)]
    assert list(make_rows(["baseline"], Settings())) == list(BASELINES)


def test_rows_that_cannot_be_made_are_told():
    with pytest.raises(UserError, match="no row 'magic': choose KIND=VALUE with a kind of baseline, teacher"):
        make_rows(["magic=x"], Settings())
    with pytest.raises(UserError, match="no baseline 'blob': choose from all white, flat card"):
        make_rows(["baseline=blob"], Settings())
    with pytest.raises(UserError, match="'all white' is the name of another row"):
        make_rows(["baseline", "baseline=all white"], Settings())
    assert rows.baseline_rows("all white", Settings()) == {"all white": all_white}
