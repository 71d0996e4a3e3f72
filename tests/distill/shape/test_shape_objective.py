"""The terms of a shape network's loss, and its scores, against brute force."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from stand_ins.on_meta import OnMeta

from dd3g.cameras import Cameras
from dd3g.pepd.frustum import FAR, NEAR, OUTSIDE
from dd3g.training import generator_for
from distill.shape.objective import (
    ShapeObjective,
    ShapeObjectiveConfig,
    color_error,
    occupancy_terms,
    ray_logits,
    shape_scores,
)
from distill.shape.samples import ShapeDataset, ShapeSample, shape_sample

SIZE, BINS = 32, 24
TERMS = {"bce", "dice", "silhouette", "silhouette_dice", "color"}


def batch_of(objects, count=3, pixels=40):
    return ShapeSample.collate([ShapeDataset(objects, 0, SIZE, BINS, pixels=pixels)[i] for i in range(count)])


class Made(torch.nn.Module):
    """A network that answers with what it was given for each picture."""

    def __init__(self, batch, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        B = len(batch.image)
        self.logits = torch.randn(B, BINS, SIZE, SIZE, generator=g)
        self.volume = torch.randn(B, 4, 4, 16, 16, generator=g)
        self.images = batch.image

    def forward(self, image, elevation):
        which = [next(i for i, o in enumerate(self.images) if torch.equal(o, one)) for one in image]
        return self.logits[which], self.volume[which]


def test_terms_of_occupancy_by_hand(objects):
    batch = batch_of(objects, 2)
    logits = Made(batch).logits
    bce, dice = occupancy_terms(logits, batch)
    hand = []
    for b in range(2):
        mask = (batch.image[b, 3] > 0.05).expand(BINS, -1, -1)
        p, t = logits[b][mask].sigmoid().double(), batch.occupancy[b][mask].double()
        cross = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        hand.append((cross, 1 - (2 * (p * t).sum() + 50) / (p.sum() + t.sum() + 50)))
    assert float(bce) == pytest.approx(float(sum(h[0] for h in hand) / 2), rel=1e-5)
    assert float(dice) == pytest.approx(float(sum(h[1] for h in hand) / 2), rel=1e-5)


def test_terms_of_masks_by_hand(objects):
    batch = batch_of(objects, 2, pixels=300)
    model = Made(batch)
    seen = ray_logits(model.logits, batch, batch.jitter, 64)
    p, t = seen.sigmoid().double(), batch.rgba[..., 3].double()
    cross = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    overlap = (2 * (p * t).sum(1) + 50) / (p.sum(1) + t.sum(1) + 50)
    terms = ShapeObjective(ShapeObjectiveConfig(silhouette=1, silhouette_dice=3))(model, batch, 0)[1]
    assert float(terms["silhouette"]) == pytest.approx(float(cross), rel=1e-5)
    assert float(terms["silhouette_dice"]) == pytest.approx(3 * float((1 - overlap).mean()), rel=1e-5)


def test_largest_logits_by_hand(objects):
    """Ray by ray, with the input's camera as `Cameras` projects."""
    batch, steps = batch_of(objects, 2, pixels=24), 9
    logits = Made(batch).logits
    found = ray_logits(logits, batch, batch.jitter, steps)
    for b in range(2):
        camera = Cameras.orbit([0.0], [math.degrees(float(batch.elevation[b]))], SIZE)
        cut = torch.where(batch.image[b, 3] > 0.05, logits[b], torch.tensor(OUTSIDE))
        for p in range(24):
            best = OUTSIDE
            for m in range(steps):
                z = NEAR + (FAR - NEAR) * (m + float(batch.jitter[b, p])) / steps
                uv, depth = camera.project((batch.origins[b, p] + z * batch.directions[b, p])[None])
                place = torch.cat([uv[0, 0], (depth[0] - NEAR) / (FAR - NEAR) * 2 - 1])
                if place.abs().max() < 1:
                    options = {"align_corners": False, "padding_mode": "border"}
                    value = F.grid_sample(cut[None, None], place.view(1, 1, 1, 1, 3), **options)
                    best = max(best, float(value))
            assert float(found[b, p]) == pytest.approx(best, abs=2e-3)
    assert (found > OUTSIDE).any() and (found == OUTSIDE).any()


def test_the_loss_of_a_batch_is_the_mean_of_its_samples(objects):
    batch = batch_of(objects)
    weights = ShapeObjectiveConfig(bce=1, dice=3, silhouette=2, silhouette_dice=5, color=4)
    model, objective = Made(batch), ShapeObjective(weights)
    loss, terms = objective(model, batch, 0)
    assert float(loss) == pytest.approx(sum(map(float, terms.values())), rel=1e-5)
    assert set(terms) == TERMS and min(map(float, terms.values())) > 0
    singles = []
    for b in range(3):
        one = ShapeSample(*(getattr(batch, f.name)[b : b + 1] for f in fields(batch)))
        singles.append(objective(model, one, 0)[1])
    for name, value in terms.items():
        assert float(value) == pytest.approx(float(sum(s[name] for s in singles)) / 3, rel=1e-4)


def test_the_loss_makes_nothing_on_the_host(objects):
    batch = batch_of(objects, 2).to("meta")
    logits = torch.zeros(2, BINS, SIZE, SIZE, device="meta", requires_grad=True)
    volume = torch.zeros(2, 4, 4, 16, 16, device="meta", requires_grad=True)
    objective = ShapeObjective(ShapeObjectiveConfig())
    with OnMeta():
        loss, _ = objective(lambda image, elevation: (logits, volume), batch, 0)
        loss.backward()
    assert logits.grad.is_meta and volume.grad.is_meta


def test_a_weight_of_zero_leaves_a_term_out(objects):
    batch = batch_of(objects)
    for name in TERMS:
        weights = dict.fromkeys(TERMS, 0.0) | {name: 2.0}
        loss, terms = ShapeObjective(ShapeObjectiveConfig(**weights))(Made(batch), batch, 0)
        assert float(loss) == pytest.approx(float(terms[name]), rel=1e-5) and float(loss) > 0


def test_the_truth_costs_little_and_scores_well(objects):
    samples = [shape_sample(objects[k], generator_for(3, k), SIZE, 96, 800) for k in range(3)]
    batch = ShapeSample.collate(samples)
    true = SimpleNamespace(logits=12 * batch.occupancy.float() - 6, volume=torch.zeros(3, 4, 4, 16, 16))
    blob = SimpleNamespace(logits=torch.full_like(true.logits, 6.0), volume=true.volume)
    costs = {}
    for name, made in (("true", true), ("blob", blob)):
        loss = ShapeObjective(ShapeObjectiveConfig(color=0))
        costs[name] = loss(lambda image, elevation, m=made: (m.logits, m.volume), batch, 0)[1]
    for term in TERMS - {"color"}:
        assert costs["true"][term] < 0.4 * costs["blob"][term]
    scores = shape_scores(lambda image, elevation: (true.logits, true.volume), [batch])
    assert scores["volume_iou_50"] == 1 and scores["mask_iou_50"] > 0.9
    wrong = shape_scores(lambda image, elevation: (blob.logits, blob.volume), [batch])
    assert wrong["volume_iou_50"] < 0.6 and wrong["mask_iou_50"] < 0.8
    assert {f"{k}_iou_{p}" for k in ("volume", "mask") for p in (30, 40, 50)} < set(scores)


def test_scores_are_means_over_samples_not_over_batches(objects):
    batch = batch_of(objects)
    model = Made(batch)
    parts = [
        ShapeSample(*(getattr(batch, f.name)[s] for f in fields(batch))) for s in (slice(2), slice(2, 3))
    ]
    whole, apart = shape_scores(model, [batch]), shape_scores(model, parts)
    assert apart == pytest.approx(whole, rel=1e-5)


def test_the_colour_error_counts_what_is_seen(objects):
    """A volume that makes every point white: the error is known, where outlines are no mixtures."""
    batch = batch_of(objects, 2, pixels=300)
    batch.rgba[:, ::3, 3] *= 0.91
    batch.rgba[:, 1::3] *= torch.tensor([0, 0, 0, 0.89])
    volume = torch.zeros(2, 4, 4, 16, 16)
    volume[:, 1:] = 30.0
    found = color_error(volume, batch)
    for b in range(2):
        seen = (batch.depth[b] > 0) & (batch.rgba[b, :, 3] > 0.9)
        assert float(found[b]) == pytest.approx(float((1 - batch.rgba[b, seen, :3]).abs().mean()), abs=1e-3)


def test_colours_are_taken_at_the_depth_of_other_views(objects):
    """A volume that is white in front and black behind; points in between are left out."""
    batch = batch_of(objects, 3, pixels=600)
    points = batch.origins + batch.depth[..., None] * batch.directions
    degrees = torch.rad2deg(batch.elevation).tolist()
    z = torch.stack([Cameras.orbit([0.0], e).project(p)[1][0] for e, p in zip(degrees, points, strict=True)])
    clear = (batch.depth > 0) & ((z < 1.36) | (z > 1.64))
    volume = torch.zeros(3, 4, 4, 16, 16)
    volume[:, 1:, :2], volume[:, 1:, 2:] = 30.0, -30.0
    found = color_error(volume, replace(batch, depth=batch.depth * clear))
    for b in range(3):
        seen = clear[b] & (batch.rgba[b, :, 3] > 0.9)
        assert seen.sum() > 5
        true = (z[b, seen] < 1.5).float()[:, None]
        assert float(found[b]) == pytest.approx(
            float((true - batch.rgba[b, seen, :3]).abs().mean()), abs=1e-3
        )
