from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dd3g.training import LoopConfig
from dd3g.training.optimizer import Muon, is_matrix, make_optimizer, orthogonal_factor

OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


def train(optimizer_class, parameters, steps=4, seed=0, **options):
    """Steps along made-up gradients, the same for parameters of the same shape."""
    parameters = list(parameters)
    optimizer = optimizer_class(parameters, **(OPTIONS | options))
    for step in range(steps):
        for p in parameters:
            g = torch.Generator().manual_seed(1000 * seed + step)
            p.grad = torch.randn(p.numel(), generator=g).view_as(p)
        optimizer.step()
    return optimizer


def test_orthogonal_factor_by_decomposition():
    for shape in ((3, 40, 64), (3, 64, 40), (1, 32, 288)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
        found = orthogonal_factor(matrices).float()
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        along = (u.mT @ found @ vh.mT).diagonal(dim1=1, dim2=2)  # singular values, on the right axes
        assert 0.6 < along.min() and along.max() < 1.3
        assert (found - u @ along.diag_embed() @ vh).abs().max() < 0.03
    assert not orthogonal_factor(torch.zeros(1, 40, 40)).any()


def test_matrices_follow_the_muon_of_torch():
    start = [torch.randn(s) for s in ((40, 64), (40, 64), (96, 33))]
    ours, theirs = ([nn.Parameter(m.clone()) for m in start] for _ in range(2))
    train(Muon, ours)
    train(torch.optim.Muon, theirs, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for a, b, m in zip(ours, theirs, start, strict=True):
        moved = (b - m).norm()
        assert (a - b).norm() < 0.02 * moved  # bfloat16 rounds batches in another order


def test_a_convolution_is_a_matrix_and_thin_parameters_take_adamw():
    kernel, flat = nn.Parameter(torch.ones(64, 32, 3, 3)), nn.Parameter(torch.ones(64, 288))
    train(Muon, [kernel])
    train(Muon, [flat])
    assert torch.equal(kernel.flatten(1), flat)
    shapes = [(64,), (3, 64), (64, 3), (1, 64, 8, 8), ()]
    assert not any(is_matrix(torch.zeros(s)) for s in shapes)
    assert all(is_matrix(torch.zeros(s)) for s in ((32, 32), (32, 8, 2, 2), (64, 64, 1, 1)))
    ours, theirs = ([nn.Parameter(torch.ones(s)) for s in shapes] for _ in range(2))
    train(Muon, [nn.Parameter(torch.ones(32, 32)), *ours], betas=(0.8, 0.9))
    train(torch.optim.AdamW, theirs, betas=(0.8, 0.9))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_parameter_without_gradient_stays():
    used, unused = nn.Parameter(torch.ones(32, 32)), nn.Parameter(torch.ones(32, 32))
    optimizer = Muon([used, unused], **OPTIONS)
    used.grad = torch.eye(32)
    optimizer.step()
    assert torch.equal(unused, torch.ones(32, 32)) and not torch.equal(used, unused)


def test_its_state_is_all_that_it_remembers():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    first = train(Muon, model.parameters(), momentum=0.8)
    other = copy.deepcopy(model)
    second = Muon(other.parameters(), **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    third, copied = copy.deepcopy((first, model))
    for optimizer, net in ((first, model), (second, other), (third, copied)):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    for a, *others in zip(*(net.parameters() for net in (model, other, copied)), strict=True):
        assert all(torch.equal(a, b) for b in others)


def test_the_state_of_another_optimiser_is_refused():
    matrix = nn.Parameter(torch.ones(32, 32))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        Muon([matrix], **OPTIONS).load_state_dict(train(torch.optim.AdamW, [matrix]).state_dict())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_after_an_overflow_of_fp16_no_step_is_taken(name):
    """As the loop is to know: fused steps are taken, of which only AdamW's kernel then does nothing."""
    model = nn.Linear(40, 40)
    config = LoopConfig(optimizer=name, mixed_precision="fp16")
    optimizer = make_optimizer(model, config, fused=True)
    assert all(not group["fused"] for group in optimizer.param_groups)
    scaler, before = torch.amp.GradScaler("cpu"), copy.deepcopy(model.state_dict())
    scaler.scale(model(torch.full((1, 40), torch.inf)).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert not optimizer.state
    config = LoopConfig(optimizer=name, mixed_precision="no")
    assert all(group["fused"] for group in make_optimizer(model, config, fused=True).param_groups)
