import json

import pytest
import torch
from stand_ins.small_motion import small_motion

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import H36M_17, flip
from dd3g.pose.networks.lifter import (
    GraphConv,
    GraphLifter,
    LifterConfig,
    Plain,
    adjacency,
    lift,
    normalise,
)
from dd3g.pose.training import train_lifter

SMALL = LifterConfig(width=16, blocks=1)


def lifter():
    torch.manual_seed(0)
    return GraphLifter(SMALL).eval()


def keypoints(count=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(count, 17, 2, generator=g), torch.rand(count, 17, generator=g) * 0.9 + 0.1


def test_the_skeleton_graph_has_rows_of_sum_1():
    A = adjacency(False)
    assert torch.allclose(A.sum(1), torch.ones(17)) and torch.equal(A > 0, A.T > 0)
    assert A[0].nonzero()[:, 0].tolist() == [0, 1, 4, 7] and A[8].nonzero()[:, 0].tolist() == [
        7,
        8,
        9,
        11,
        14,
    ]
    assert A[3, 3] == 0.5 and A[0, 7] == 0.25


@pytest.mark.parametrize("split", [False, True])
def test_graph_convolution_is_the_formula(split):
    torch.manual_seed(0)
    layer = GraphConv(4, 5, split).double()
    torch.nn.init.normal_(layer.learned, std=0.1)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 17, 4, dtype=torch.float64)
    A = adjacency(split).double() + layer.learned
    A, M = (A + A.T) / 2, layer.modulation
    eye = torch.eye(17, dtype=torch.float64)
    expected = torch.zeros(2, 17, 5, dtype=torch.float64)
    for n in range(2):
        own, others = M * (x[n] @ layer.weight[0]), M * (x[n] @ layer.weight[-1])
        expected[n] = (A * eye) @ own + (A * (1 - eye)) @ others + layer.bias
    assert torch.allclose(layer(x.transpose(0, 1)).transpose(0, 1), expected)
    assert len(layer.weight) == 1 + split


def test_missing_keypoints_are_not_looked_at():
    x, confidence = keypoints()
    confidence[:, 5] = 0
    other = x.clone()
    other[:, 5] = torch.nan
    poses = lifter()(x, confidence)
    assert torch.equal(poses, lifter()(other, confidence)) and (poses[:, 0] == 0).all()
    nothing = lifter()(torch.full_like(x, torch.nan), torch.zeros_like(confidence))
    assert nothing.isfinite().all()
    assert torch.equal(lifter()(x), lifter()(x, torch.ones_like(confidence)))


def test_the_answer_to_the_mirror_image_is_the_mirror_image():
    x, confidence = keypoints()
    poses = lift(lifter(), x, confidence)
    assert torch.allclose(lift(lifter(), flip(x), confidence[:, H36M_17.mirrored]), flip(poses), atol=1e-6)
    one = lifter()(x, confidence)
    assert not torch.allclose(one, poses, atol=1e-3) and (poses[:, 0] == 0).all()


def test_normalised_keypoints_are_those_of_h36m():
    K = torch.tensor([[1145.0, 0, 500], [0, 1145, 500], [0, 0, 1]])
    x = normalise(torch.tensor([[0.0, 500.0], [1000.0, 750.0]]), K)
    assert torch.allclose(x, torch.tensor([[-1.0, 0.0], [1.0, 0.5]]))
    # Another camera that sees the same rays gives the same.
    wide = K.clone()
    wide[:2] *= 0.4
    assert torch.allclose(normalise(torch.tensor([[0.0, 200.0], [400.0, 300.0]]), wide), x)


def test_a_function_of_keypoints_alone_plugs_in():
    seen = []

    def function(x):
        seen.append(x)
        return torch.cat([x, x[..., :1] * 0], -1)

    x, confidence = keypoints(2)
    confidence[0, [5, 6]] = 0  # left knee and ankle: the hip's place
    confidence[1] = 0
    poses = lift(Plain(function), x, confidence)
    filled = seen[0][0]
    assert torch.allclose(filled[[5, 6]], x[0, 4].expand(2, 2)) and torch.equal(filled[7:], x[0, 7:])
    assert torch.allclose(poses[0, 12, :2], x[0, 12] - x[0, 0], atol=1e-6) and (poses[1] == 0).all()


def test_folder_round_trip(tmp_path):
    x, confidence = keypoints()
    model = lifter()
    model.save_pretrained(tmp_path, dtype=None)
    again = GraphLifter.from_pretrained(tmp_path)
    assert torch.equal(again(x, confidence), model(x, confidence)) and not again.training
    model.save_pretrained(tmp_path)
    assert torch.allclose(
        GraphLifter.from_pretrained(tmp_path)(x, confidence), model(x, confidence), atol=5e-3
    )
    (tmp_path / "config.json").write_text(json.dumps({"kind": "pose-lifter", "width": 0}))
    with pytest.raises(UserError, match="does not build a pose-lifter"):
        GraphLifter.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no config.json"):
        GraphLifter.from_pretrained(tmp_path / "nowhere")


def test_training_lowers_the_error(tmp_path):
    motion = small_motion()
    options = {"batch": 32, "learning_rate": 1e-2, "config": SMALL}
    model = train_lifter(motion, tmp_path, steps=200, **options)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[1] < 0.75 * losses[0]
    again = train_lifter(motion, tmp_path, steps=200, resume=True, **options)  # nothing is left to do
    x, confidence = keypoints()
    assert torch.equal(model(x, confidence), again(x, confidence))
    assert GraphLifter.from_pretrained(tmp_path).config == SMALL
