"""The other methods through the same door: slices, row patterns and tile patterns."""

import copy
import io

import pytest
import torch
from method_cases import HIDDEN, MODELS, ROWS, UNITS, WITH_MODELS, WITH_UNITS, D, convert_by
from networks import Conv1DBlock, Feedforward, Net, Reshaped, found, value_and_grads
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparsedrop
from sparsedrop import RowPattern, Slice, patterns
from sparsedrop.conversion.units import UnitLinear
from sparsedrop.masks.tiles import tile_mask
from sparsedrop.nn import RowPatternLSTM, RowPatternMLP, SliceOutMLP, TilePatternLinear


class _ByHand(nn.Module):
    def __init__(self, units, scale):
        super().__init__()
        self.mask, self.scale = units.mask(), scale

    def forward(self, x):
        return torch.where(self.mask, x * self.scale, 0)


def _by_hand(model, dropouts, method, scaled_by):
    """The original with what a converted one drops from the state of now."""
    model = copy.deepcopy(model)
    for name, width in dropouts:
        p = model.get_submodule(name).p
        if method == "sliceout":
            units = Slice.draw(width, p)
            scale = units.scale
        else:
            units = RowPattern.draw(width, patterns.search(p))
            scale = units.period if scaled_by == "pattern" else 1 / (1 - p)
        model.set_submodule(name, _ByHand(units, scale))
    return model


@WITH_MODELS
@pytest.mark.parametrize(
    ("method", "scale"),
    [("sliceout", "global"), ("row-pattern", "global"), ("row-pattern", "pattern")],
)
def test_values_and_gradients(name, method, scale):
    make, dropouts, sites = MODELS[name]
    torch.manual_seed(0)
    original, x = make().double(), torch.randn(3, 8, D, dtype=torch.float64)
    model = copy.deepcopy(original)
    assert found(convert_by(model, method, x, scale=scale)) == sites
    for seed in range(12):
        torch.manual_seed(seed)
        expected = value_and_grads(_by_hand(original, dropouts, method, scale), x)
        torch.manual_seed(seed)
        for own, truth in zip(value_and_grads(model, x), expected, strict=True):
            torch.testing.assert_close(own, truth, rtol=0, atol=1e-11)


@WITH_MODELS
@pytest.mark.parametrize("method", [*UNITS, "tile-pattern"])
def test_evaluation_reverting_and_copies(name, method):
    model, x = MODELS[name][0](), torch.randn(ROWS, D)
    original = copy.deepcopy(model)
    expected = value_and_grads(copy.deepcopy(model).eval(), x)
    convert_by(model, method)
    assert list(model.state_dict()) == list(original.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for each in (model, copy.deepcopy(model), torch.load(file, weights_only=False)):
        each(x).sum().backward()
        for own, truth in zip(value_and_grads(each.eval(), x), expected, strict=True):
            assert torch.equal(own, truth)
        each.train()
        assert sparsedrop.set_rate(each, 0.0) > 0
        state = torch.get_rng_state()
        assert torch.equal(each(x), expected[0])
        assert torch.equal(torch.get_rng_state(), state)
        assert sparsedrop.revert(each) > 0
        assert [type(m) for m in each.modules()] == [type(m) for m in original.modules()]


@WITH_MODELS
@pytest.mark.parametrize("method", [*UNITS, "tile-pattern"])
def test_a_second_call_finds_nothing_more(name, method):
    model = MODELS[name][0]()
    first = convert_by(model, method)
    assert first.converted
    for again in (method, "sparsedrop"):
        report = convert_by(model, again)
        assert report.converted == ()
        assert {e.reason for e in report.skipped if e.name == first.converted[0].name} == {
            "already converted"
        }


def test_modules_of_the_other_methods_are_there_already():
    model = nn.Sequential(
        SliceOutMLP(D, HIDDEN, gated=True), RowPatternMLP(D, HIDDEN), TilePatternLinear(D, D),
        RowPatternLSTM(D, D),
    )  # fmt: skip
    report = sparsedrop.convert(model)
    assert [entry[:2] for entry in report.skipped] == [
        ("0", "gated"), ("1", "mlp"), ("2", "input"), ("3", "input")
    ]  # fmt: skip


@pytest.mark.parametrize("method", [*UNITS, "tile-pattern"])
def test_block_shapes_are_no_business_of_the_other_methods(method):
    report = convert_by(Feedforward(D, HIDDEN), method, block_shape=(128, 2 * HIDDEN))
    assert len(report.converted) == 1


@WITH_UNITS
def test_only_live_units_are_computed(method):
    model, x = Feedforward(D, HIDDEN), torch.randn(ROWS, D)
    report = convert_by(model, method, x)
    assert report.converted[0].expected_speedup == 2.0
    widths = set()
    model.up.register_forward_hook(lambda module, args, out: widths.add(out.shape[-1]))
    for _ in range(20):
        model(x)
    assert max(widths) == (HIDDEN // 2 if method == "sliceout" else HIDDEN)
    assert widths == {HIDDEN // 2} or len(widths) > 3


@WITH_UNITS
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_of_a_block_replays_the_draw(method, reentrant):
    model, x = Feedforward(D, HIDDEN), torch.randn(ROWS, D, requires_grad=True)
    convert_by(model, method)
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        out = run(x)
        results.append(
            [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]
            if not reentrant
            else [out]
        )
    for own, truth in zip(*results, strict=True):
        assert torch.equal(own, truth)


@WITH_UNITS
def test_autocast(method):
    model, x = Feedforward(D, HIDDEN), torch.randn(ROWS, D)
    convert_by(model, method)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("scale", ["global", "pattern"])
def test_tiles_of_the_weight_behind_a_dropout(scale):
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(D, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 384))
    original = original.double()
    model, x = copy.deepcopy(original), torch.randn(ROWS, D, dtype=torch.float64)
    report = convert_by(model, "tile-pattern", x, scale=scale)
    assert found(report) == [("3", "input")]
    assert type(model[3]) is TilePatternLinear
    for seed in range(6):
        torch.manual_seed(seed)
        drawn = RowPattern.draw(384, patterns.search(0.5))
        kept = tile_mask((384, 256), 128, drawn.period, drawn.offset, torch.device("cpu"))
        hidden = original[1](original[0](x))
        weight = torch.where(kept.expand(), original[3].weight, 0)
        by = drawn.period if scale == "pattern" else 2
        expected = nn.functional.linear(by * hidden, weight, original[3].bias)
        torch.manual_seed(seed)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-11)


REFUSED = {
    "a view within": (
        lambda: Reshaped(64), (3, 16, 64), "sliceout", 0,
        "sliceout makes fewer units, and the hidden value is reshaped on its way",
    ),
    "a dropout behind a layer": (
        lambda: Reshaped(64), (3, 16, 64), "row-pattern", 1,
        "row-pattern drops units between two linear layers",
    ),
    "tiles behind nothing": (
        lambda: nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5)), (8, D), "tile-pattern", 0,
        "tile-pattern drops parts of the weight of a layer behind a dropout",
    ),
    "Conv1D": (
        lambda: Conv1DBlock(D, HIDDEN), (3, 16, D), "sliceout", 0,
        "sliceout takes layers that are an nn.Linear",
    ),
    "all units": (
        lambda: Feedforward(D, HIDDEN, p=1.0), (8, D), "sliceout", 0,
        "p must be below 1: a slice keeps some units",
    ),
    "a rate at which a slice keeps all": (
        lambda: Feedforward(D, HIDDEN, p=0.1), (8, D), "sliceout", 0,
        "of 256 units a slice of whole 64s keeps all at p = 0.1",
    ),
    "units of which no slice can be cut": (
        lambda: Feedforward(D, 64), (8, D), "sliceout", 0,
        "of 64 units a slice of whole 64s keeps all at p = 0.5",
    ),
    "a rate that no pattern gives": (
        lambda: Feedforward(D, HIDDEN, p=0.9), (8, D), "row-pattern", 0,
        "p = 0.9 is more than 8 periods give: at most (n - 1) / n = 0.875; take a larger n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_a_method_cannot_do_stays(case):
    make, shape, method, place, reason = case
    model = make()
    modules = list(model.modules())
    report = convert_by(model, method, torch.randn(shape))
    assert report.converted == ()
    assert report.skipped[place].reason == reason
    assert list(model.modules()) == modules
    assert not any(isinstance(m, (UnitLinear, TilePatternLinear)) for m in model.modules())


@WITH_UNITS
def test_a_rate_that_cannot_be_is_refused_later_too(method):
    model = Feedforward(D, HIDDEN)
    convert_by(model, method)
    with pytest.raises(ValueError, match=r"p must be below 1|more than 8 periods give"):
        sparsedrop.set_rate(model, 1.0)
    assert model.drop.p == 0.5


def test_the_layer_behind_the_activation_alone_cannot_be_run_again():
    model = Net(lambda m, x: m.two(m.drop(m.one(x).relu())))
    model.one, model.two = nn.Linear(32, 256), nn.Linear(256, 32)
    x = torch.randn(8, 32)
    convert_by(model, "sliceout", x)
    hidden = model.one(x).relu()
    model.two(hidden)
    with pytest.raises(RuntimeError, match="checkpoint the whole block"):
        model.two(hidden)
