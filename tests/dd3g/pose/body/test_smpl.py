"""SMPL by the real smplx package, from model files made by rule; what is in a pickle is never run."""

import pickle
import sys
import types

import numpy as np
import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import SMPL_24
from dd3g.pose.body.smpl import PARTS, SmplBody

REST = torch.eye(3).expand(2, 24, 3, 3)
N = 6890


@pytest.fixture(scope="module")
def model():
    """Vertices at random; joint j is the mean of the vertices 2 j and 2 j + 1; shape 0 makes all larger."""
    rng = np.random.default_rng(0)
    template = rng.normal(size=(N, 3)).astype(np.float32)
    shapes = np.zeros((N, 3, 10), np.float32)
    shapes[..., 0] = 0.1 * template
    regressor = np.zeros((24, N), np.float32)
    for j in range(24):
        regressor[j, [2 * j, 2 * j + 1]] = 0.5
    weights = np.zeros((N, 24), np.float32)
    weights[np.arange(N), np.arange(N) % 24] = 1
    parents = np.array([[2**32 - 1, *SMPL_24.parents[1:]], range(24)], np.int64)
    return {
        "v_template": template, "shapedirs": shapes, "posedirs": np.zeros((N, 3, 207), np.float32),
        "J_regressor": regressor, "weights": weights, "kintree_table": parents,
        "f": np.arange(12).reshape(4, 3),
    }  # fmt: skip


def joints_of(model, scale=1.0):
    template = scale * torch.from_numpy(model["v_template"])
    joints = (template[0:48:2] + template[1:48:2]) / 2
    return joints - joints[:1]


@pytest.fixture(scope="module")
def smplx():
    return pytest.importorskip("smplx", reason="needs the extra 'body'")


def save(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **model)
    return path


def test_a_file_a_folder_and_the_official_names(tmp_path, model, smplx):
    file = save(model, tmp_path / "any-name.npz")
    folder = save(model, tmp_path / "a" / "SMPL_NEUTRAL.npz").parent
    save(model, tmp_path / "b" / "smpl" / "SMPL_MALE.npz")
    save(model, tmp_path / "c" / "basicModel_f_lbs_10_207_0_v1.0.0.npz")
    for path, gender in (
        (file, "neutral"),
        (folder, "neutral"),
        (tmp_path / "b", "male"),
        (tmp_path / "c", "female"),
    ):
        body = SmplBody(path, gender)
        points = body.points(REST, torch.zeros(2, 10), "smpl-24")
        torch.testing.assert_close(points[0], joints_of(model), atol=1e-5, rtol=1e-5)
    larger = body.points(REST, torch.eye(10)[:1].expand(2, 10), "smpl-24")
    torch.testing.assert_close(larger[1], joints_of(model, 1.1), atol=1e-5, rtol=1e-5)
    assert body.points(REST, torch.zeros(2, 10)).shape == (2, 17, 3)
    assert body.points(REST, torch.zeros(2, 10), "openpose-25").shape == (2, 25, 3)
    turned = REST.clone()
    turned[:, 0] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    found = body.points(turned, torch.zeros(2, 10), "smpl-24")[0]
    torch.testing.assert_close(found, joints_of(model) @ turned[0, 0].T, atol=1e-5, rtol=1e-5)


def official(model, monkeypatch):
    """As the makers saved it with chumpy and scipy: modules that are not here."""
    chumpy, sparse = types.ModuleType("chumpy.ch"), types.ModuleType("scipy.sparse.csc")

    class Ch:
        def __init__(self, x=None):
            self.x = x

        def __reduce__(self):
            return (Ch, (), {"x": self.x, "_dirty_vars": []})

    class csc_matrix:  # noqa: N801, scipy's name
        def __init__(self, dense=None):
            self.dense = dense

        def __reduce__(self):
            rows, columns = np.nonzero(self.dense.T)[::-1]
            indptr = np.searchsorted(columns, np.arange(self.dense.shape[1] + 1))
            state = {"_shape": self.dense.shape, "indptr": indptr, "indices": rows}
            return (csc_matrix, (), state | {"data": self.dense[rows, columns]})

    for cls, module, package in ((Ch, chumpy, "chumpy"), (csc_matrix, sparse, "scipy.sparse")):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    content = dict(model, shapedirs=Ch(model["shapedirs"]), J_regressor=csc_matrix(model["J_regressor"]))
    data = pickle.dumps(content, protocol=2)
    monkeypatch.undo()
    return data


def test_the_official_pickle_is_read_without_its_classes(tmp_path, model, smplx, monkeypatch):
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(official(model, monkeypatch))
    points = SmplBody(tmp_path).points(REST, torch.eye(10)[:1].expand(2, 10), "smpl-24")
    torch.testing.assert_close(points[0], joints_of(model, 1.1), atol=1e-5, rtol=1e-5)


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('RAN').touch()",))


def test_no_code_runs_and_bad_models_are_one_line(tmp_path, model, smplx, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(dict.fromkeys(PARTS, Bomb())))
    save({k: v for k, v in model.items() if k != "weights"}, tmp_path / "part.npz")
    save(model | {"weights": np.zeros((N, 52))}, tmp_path / "smplh.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK")
    for name, message in (
        ("bomb.pkl", "which is code and not numbers; it was not run"),
        ("part.npz", "has no 'weights'"),
        ("smplh.npz", "has 52 joints, SMPL has 24"),
        ("cut.npz", "is not a whole npz"),
        ("nowhere", "no SMPL model there, looked for SMPL_NEUTRAL.npz"),
    ):
        with pytest.raises(UserError, match=message):
            SmplBody(tmp_path / name)
    assert not (tmp_path / "RAN").exists()
    with pytest.raises(UserError, match="gender must be one of neutral, male, female"):
        SmplBody(tmp_path, "unknown")
