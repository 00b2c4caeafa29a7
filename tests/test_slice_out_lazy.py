"""gradients="lazy": steps of slices, against whole gradients and whole steps."""

import copy

import pytest
import torch

from lazy_cases import MODELS, pair
from slice_cases import drawing, every_slice
from sparsedrop import slice_out
from sparsedrop.ops.slices.gradients import gradient_of


def _steps(model, optimizer, count, clip=None, accumulate=1):
    torch.manual_seed(0)
    for _ in range(count):
        optimizer.zero_grad()
        for _ in range(accumulate):
            model(torch.randn(3, 4, 8).double()).square().sum().backward()
        if clip is not None:
            clip()
        optimizer.step()


def _assert_same(a, b):
    for (name, one), other in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_plain_sgd_is_the_same(make, accumulate):
    dense, lazy = pair(make)
    _steps(dense, torch.optim.SGD(dense.parameters(), 1e-2), 12, accumulate=accumulate)
    optimizer = slice_out.lazy(torch.optim.SGD(lazy.parameters(), 1e-2))
    _steps(lazy, optimizer, 12, accumulate=accumulate)
    _assert_same(dense, lazy)


def test_clipped_sgd_is_the_same():
    dense, lazy = pair(MODELS["two"])
    clip = torch.nn.utils.clip_grad_norm_
    norms: dict[str, list[torch.Tensor]] = {"dense": [], "lazy": []}
    _steps(dense, torch.optim.SGD(dense.parameters(), 1e-2), 8,
           lambda: norms["dense"].append(clip(dense.parameters(), 0.5)))  # fmt: skip
    optimizer = slice_out.lazy(torch.optim.SGD(lazy.parameters(), 1e-2))
    _steps(lazy, optimizer, 8, lambda: norms["lazy"].append(clip(optimizer.parameters(), 0.5)))
    _assert_same(dense, lazy)
    torch.testing.assert_close(norms["dense"], norms["lazy"])
    assert min(norms["lazy"]) > 0.5


OPTIMIZERS = {
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "decay": (torch.optim.SGD, {"weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "adam, one by one": (torch.optim.Adam, {"foreach": False}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw, all at once": (torch.optim.AdamW, {"foreach": True}),
}


@pytest.mark.parametrize(("cls", "how"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_is_the_stock_one_of_the_slice(cls, how):
    """Each unit as if it were a parameter alone, but for the count of steps, and all else still."""
    dense, lazy = pair(MODELS["block"])
    optimizer = slice_out.lazy(cls(lazy.parameters(), 1e-2, **how))
    # The oracle: a stock step of all, of which only live units are taken over.
    stock = cls(dense.parameters(), 1e-2, **how)
    for step in range(12):
        chosen = every_slice(lazy, 24)[(5 * step) % 6]
        x = torch.randn(3, 8).double()
        before = [p.detach().clone() for p in dense.parameters()]
        state = copy.deepcopy(stock.state_dict()["state"])
        for model, own in ((dense, stock), (lazy, optimizer)):
            own.zero_grad()
            with drawing(chosen):
                model(x).square().sum().backward()
            own.step()
        kept = chosen.mask()
        with torch.no_grad():
            for i, (name, parameter) in enumerate(dense.named_parameters()):
                if name == "down.bias":
                    continue
                live = kept if name != "down.weight" else kept.expand_as(parameter)
                live = live[:, None] if name == "up.weight" else live
                parameter.copy_(torch.where(live, parameter, before[i]))
                for key, value in stock.state[parameter].items():
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        old = state[i][key] if i in state else torch.zeros_like(value)
                        value.copy_(torch.where(live, value, old))
        _assert_same(dense, lazy)


@pytest.mark.parametrize("name", ["momentum", "decay", "adamw"])
def test_with_state_or_decay_it_is_not_the_dense_step(name):
    """What the slice does not reach stands still."""
    cls, how = OPTIMIZERS[name]
    dense, lazy = pair(MODELS["block"])
    one, other = every_slice(lazy, 24)[:4:3]
    optimizer, stock = slice_out.lazy(cls(lazy.parameters(), 1e-2, **how)), cls(
        dense.parameters(), 1e-2, **how
    )  # fmt: skip
    x = torch.randn(3, 8).double()
    for chosen in (one, other):
        before = [m.up.weight.detach().clone() for m in (dense, lazy)]
        for model, own in ((dense, stock), (lazy, optimizer)):
            own.zero_grad()
            with drawing(chosen):
                model(x).square().sum().backward()
            own.step()
    left = one.mask() & ~other.mask()
    assert left.any()
    assert torch.equal(lazy.up.weight[left], before[1][left])
    assert (dense.up.weight[left] != before[0][left]).all()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_gradients_are_as_large_as_the_slice(make):
    _, lazy = pair(make)
    x = torch.randn(3, 4, 8).double().requires_grad_()
    lazy(x).square().sum().backward()
    assert x.grad.any()
    sizes = {
        name: (gradient_of(p).values.numel() / p.numel(), p.grad)
        for name, p in lazy.named_parameters()
        if gradient_of(p) is not None
    }
    counts = {"block": 3, "gated": 3, "attention": 7, "fused attention": 3, "two": 6}
    assert len(sizes) == counts[next(name for name in MODELS if MODELS[name] is make)]
    assert set(sizes.values()) == {(0.5, None)}


def test_zero_grad_and_step_forget_gradients():
    _, lazy = pair(MODELS["block"])
    optimizer = slice_out.lazy(torch.optim.SGD(lazy.parameters(), 1e-2))
    before = copy.deepcopy(lazy.state_dict())
    x = torch.randn(3, 8).double()
    lazy(x).sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert all(map(torch.equal, before.values(), lazy.state_dict().values()))
    lazy(x).sum().backward()
    optimizer.step()
    after = lazy.up.weight.detach().clone()
    assert not torch.equal(after, before["up.weight"])
    lazy.zero_grad()
    optimizer.step()
    assert torch.equal(lazy.up.weight, after)


def test_a_whole_gradient_takes_in_that_of_a_slice():
    dense, lazy = pair(MODELS["block"])
    for model in (dense, lazy):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        optimizer = slice_out.lazy(optimizer) if model is lazy else optimizer
        x = torch.randn(3, 8).double()
        for p in (0.5, 0.0, 0.25):
            model.p = p
            model(x).square().sum().backward()
        optimizer.step()
    _assert_same(dense, lazy)


def test_state_dicts_are_those_of_the_stock_optimizer_both_ways():
    _, lazy = pair(MODELS["two"])
    optimizer = slice_out.lazy(torch.optim.AdamW(lazy.parameters(), 1e-2))
    _steps(lazy, optimizer, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    stock = torch.optim.AdamW(lazy.parameters(), 1e-2)
    stock.load_state_dict(saved)
    parameters = list(lazy.parameters())
    assert all(stock.state[p]["exp_avg"].shape == p.shape for p in parameters)
    assert {int(stock.state[p]["step"]) for p in parameters} == {5}
    assert len(optimizer.inner.state) == len(parameters)
    other = copy.deepcopy(lazy)
    again = slice_out.lazy(torch.optim.AdamW(other.parameters(), 1e-2))
    again.load_state_dict(saved)
    for model, own in ((lazy, optimizer), (other, again)):
        _steps(model, own, 3)
    _assert_same(lazy, other)


def test_schedulers_closures_and_hooks():
    _, lazy = pair(MODELS["block"])
    optimizer = slice_out.lazy(torch.optim.SGD(lazy.parameters(), 1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    x = torch.randn(3, 8).double()

    def closure():
        optimizer.zero_grad()
        loss = lazy(x).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        assert optimizer.step(closure).item() > 0
        scheduler.step()
    assert seen == [1.0, 0.5, 0.25]


def test_a_grad_scaler():
    dense, lazy = pair(MODELS["block"])
    dense, lazy = dense.float(), lazy.float()
    for model in (dense, lazy):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        optimizer = slice_out.lazy(optimizer) if model is lazy else optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(3, 8)).square().mean()
            scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 512.0
    for one, other in zip(dense.parameters(), lazy.parameters(), strict=True):
        torch.testing.assert_close(one, other)
