"""Keypoints of made-up people, and every kind of broken file of them."""

import json
import pickle

import numpy as np


def some(joints: int, people: int = 2, seed: int = 0) -> np.ndarray:
    """(people, joints, 3): places 100..500 px, confidences 0.5..1."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.uniform(100, 500, (people, joints, 2)), rng.uniform(0.5, 1, (people, joints, 1))], 2
    )


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('RAN').touch()",))


def bad_files(folder):
    good = some(17, 1)
    nan = good.copy()
    nan[0, 4, 0] = np.nan
    dark = good.copy()
    dark[..., 2] = 0
    few = dark.copy()
    few[0, [1, 2, 3], 2] = 1

    far = good.copy()
    far[0, 4, 0] = 1e30
    one, box = np.ones((1, 17, 1, 4)), np.array([[0, 0, 9, 9.0]])
    turned = np.array([[800, 0, 0], [0, 800, 0], [320, 240, 1.0]])

    def npz(name, **arrays):
        np.savez(folder / name, **arrays)
        return name

    def text(name, content):
        (folder / name).write_text(content)
        return name

    npz("whole.npz", keypoints=good)
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:200])
    np.savez_compressed(folder / "rotten.npz", keypoints=good.repeat(30, 0))
    content = bytearray((folder / "rotten.npz").read_bytes())
    content[200:260] = bytes(60)
    (folder / "rotten.npz").write_bytes(content)
    (folder / "bomb.npz").write_bytes(b"")
    np.savez(folder / "bomb.npz", keypoints=np.array([Bomb()], dtype=object))
    (folder / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    person = json.dumps({"keypoints": good[0].tolist()})
    pair = [{"image_id": i, "keypoints": good[0].ravel().tolist()} for i in (7, 8)]
    return [
        (npz("nan.npz", keypoints=nan), "h36m-17", "l_hip of person 0 is not a number"),
        (npz("far.npz", keypoints=far), "h36m-17", "l_hip of person 0 is not a number of pixels"),
        (npz("trust.npz", keypoints=good, confidence=good[0, :16, 2]), "h36m-17", r"\(1, 17\) like the key"),
        (npz("scores.npz", keypoints=good, scores=[1.0, 1.0]), "h36m-17", "one for each of 1 people, got 2"),
        (npz("turned.npz", keypoints=good, K=turned), "h36m-17", "fx, s, cx"),
        (npz("flat.npz", keypoints=good, heatmaps=one, boxes=0 * box), "h36m-17", "left before right"),
        (npz("boxnan.npz", keypoints=good, heatmaps=one, boxes=box * np.nan), "h36m-17", "left before right"),
        (npz("nomaps.npz", keypoints=good, heatmaps=one[..., :0], boxes=box), "h36m-17", "h, w"),
        (npz("dark.npz", keypoints=dark), "h36m-17", "person 0 has confidence 0 everywhere"),
        (npz("few.npz", keypoints=few), "h36m-17", "only 3 of 17 joints: give at least 4"),
        (npz("count.npz", keypoints=good[:, :16]), None, "no layout has 16 joints"),
        (npz("count2.npz", keypoints=good), "openpose-25", "openpose-25 has 25 joints, got .*17"),
        (npz("which.npz", keypoints=good), None, "coco-17 or h36m-17: say which with --layout"),
        (npz("unknown.npz", keypoints=good), "mpii-16", "unknown joint layout 'mpii-16'"),
        (npz("names.npz", kpts=good), "h36m-17", "no array 'keypoints' in it, only kpts"),
        (npz("nobody.npz", keypoints=good[:0]), "h36m-17", "no person in it"),
        (npz("focal.npz", keypoints=good, K=-np.eye(3)), "h36m-17", "focal lengths in K must be positive"),
        (npz("maps.npz", keypoints=good, heatmaps=one[:, :16], boxes=one[0, :1, 0]), "h36m-17", "h, w"),
        (npz("boxes.npz", keypoints=good, heatmaps=one), "h36m-17", "need 'boxes'"),
        ("cut.npz", "h36m-17", "damaged or cut short"),
        ("rotten.npz", "h36m-17", "damaged or cut short"),
        ("bomb.npz", "h36m-17", "pickled objects, which are never read"),
        ("raw.npz", "h36m-17", "pickled|damaged"),
        (text("cut.json", '{"people": [{"keyp'), None, "not JSON, or cut short"),
        (text("none.json", '{"people": []}'), None, "no person in it"),
        (text("number.json", "3"), None, "no list of people"),
        (text("empty.json", '{"people": [{"id": 3}]}'), None, "person 0 has no list of 'keypoints'"),
        (text("five.json", '{"people": [{"keypoints": 5}]}'), None, "person 0 has no list of 'keypoints'"),
        (text("deep.json", "[" * 100_000), None, "not JSON, or cut short"),
        (text("two.json", json.dumps({"annotations": pair})), None, "holds several pictures"),
        (text("two-results.json", json.dumps(pair)), None, "holds several pictures"),
        (text("list.json", f'{{"layout": ["coco-17"], "people": [{person}]}}'), None, "unknown joint layout"),
        (text("ragged.json", f'{{"people": [{person}, {{"keypoints": [1,2,1]}}]}}'), None, "different"),
        (text("text.json", '{"people": [{"keypoints": ["a", "b", "c"]}]}'), None, "regular array of numbers"),
        (text("size.json", f'{{"size": [0, 5], "people": [{person}]}}'), "h36m-17", "width, height"),
        (text("keypoints.pkl", "x"), None, "keypoints come as .json, .npz or .txt, not .pkl"),
        ("absent.json", None, "does not exist"),
    ]  # fmt: skip
