"""Pickles and arrays of others are data, never code."""

from __future__ import annotations

import collections
import io
import os
import pickle

import numpy as np
import pytest

from dd3g.errors import UserError
from dd3g.pose.data.arrays import read_npz, read_pickle

RNG = np.random.default_rng(0)


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_files_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"poses": Code(marker)}))
    np.savez(tmp_path / "bad.npz", data=np.array({"x": Code(marker)}, dtype=object))
    with pytest.raises(UserError, match=r"bad.pkl is refused.*mkdir.*not run"):
        read_pickle(tmp_path / "bad.pkl")
    with pytest.raises(UserError, match=r"bad.npz is refused.*mkdir"):
        read_npz(tmp_path / "bad.npz", ["data"])
    assert not marker.exists()
    for name in (b"builtins\neval", b"numpy\nload", b"numpy.testing\nrun_module_suite"):
        (tmp_path / "bad.pkl").write_bytes(b"c" + name + b"\n.")
        with pytest.raises(UserError, match="refused"):
            read_pickle(tmp_path / "bad.pkl")


def test_what_numpy_wrote_comes_back(tmp_path):
    value = {
        "a": RNG.normal(size=(3, 2)), "s": np.float32(2.5), "names": np.array(["x", "yy"]),
        "bytes": np.array([b"q"]), "list": [np.arange(3), None, True, "word"],
        "fortran": np.ones((2, 3), order="F"),
        "objects": np.array([{"k": 1}, [2]], dtype=object),
    }  # fmt: skip
    for protocol in (2, 4, 5):
        (tmp_path / "v.pkl").write_bytes(pickle.dumps(value, protocol))
        found = read_pickle(tmp_path / "v.pkl")
        np.testing.assert_array_equal(found["a"], value["a"])
        np.testing.assert_array_equal(found["fortran"], value["fortran"])
        assert found["s"] == 2.5 and found["names"].tolist() == ["x", "yy"] and found["bytes"][0] == b"q"
        assert found["list"][1:] == [None, True, "word"] and found["objects"][0] == {"k": 1}
    # The same array as numpy 1 under Python 2 named its parts.
    old = pickle.dumps({"a": value["a"]}, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "old.pkl").write_bytes(old)
    np.testing.assert_array_equal(read_pickle(tmp_path / "old.pkl")["a"], value["a"])


def test_pickles_of_trackers_are_data(tmp_path):
    tracks = collections.defaultdict(list)
    tracks[3].append(np.arange(4.0))
    value = collections.OrderedDict(tracks=tracks, other=collections.defaultdict(dict))
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(value, 2))
    found = read_pickle(tmp_path / "t.pkl")
    assert list(found) == ["tracks", "other"] and found["tracks"][3][0].tolist() == [0, 1, 2, 3]
    (tmp_path / "code.pkl").write_bytes(pickle.dumps(collections.defaultdict(print), 2))
    with pytest.raises(UserError, match="asks for .*print, which is code"):
        read_pickle(tmp_path / "code.pkl")


def test_damaged_files_are_told(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, positions_3d=np.array({"S9": 1}, dtype=object))
    (tmp_path / "half.npz").write_bytes(stream.getvalue()[:200])
    with pytest.raises(UserError, match="not a whole npz"):
        read_npz(tmp_path / "half.npz")
    np.savez_compressed(tmp_path / "rotten.npz", data=RNG.normal(size=500))
    content = bytearray((tmp_path / "rotten.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "rotten.npz").write_bytes(content)
    with pytest.raises(UserError, match="not a whole npz"):
        read_npz(tmp_path / "rotten.npz", ["data"])
    (tmp_path / "half.pkl").write_bytes(pickle.dumps({"a": np.arange(100)})[:90])
    with pytest.raises(UserError, match="not a readable pickle"):
        read_pickle(tmp_path / "half.pkl")
    (tmp_path / "whole.npz").write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="no 'positions_2d'; it has positions_3d"):
        read_npz(tmp_path / "whole.npz", ["positions_2d"])
