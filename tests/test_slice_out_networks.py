"""Residual branches that a user slices, and the statistics of their batch norms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from slice_cases import assert_equal_to, value_and_grads
from sparsedrop import Slice, reference, slice_out
from sparsedrop.masks.slices import slices


class Branch(nn.Module):
    """x + conv2(dropout(act(bn(conv1(x))))), with a depthwise convolution and a squeeze-excite
    within, as MBConv has them."""

    def __init__(self, channels=8, hidden=16, squeezed=4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.norm = nn.BatchNorm2d(hidden)
        self.deep = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.squeeze, self.excite = nn.Linear(hidden, squeezed), nn.Linear(squeezed, hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1)
        self.p = 0.5

    def forward(self, x):
        own = Slice.draw(16, self.p, align=2) if self.training else None
        return self.sliced(x, own)

    def sliced(self, x, own):
        norm, scale = self.norm, 1.0 if own is None else own.scale
        h = slice_out.conv2d(x, self.conv1.weight, self.conv1.bias, padding=1, out_slice=own)
        if own is None:
            h = norm(h)
        else:
            h = slice_out.batch_norm(
                h, norm.running_mean, norm.running_var, norm.weight, norm.bias, True,
                out_slice=own,
            )  # fmt: skip
        both = {"in_slice": own, "out_slice": own}
        h = slice_out.conv2d(
            F.silu(h), self.deep.weight, self.deep.bias, padding=1, groups=16, **both
        )
        s = slice_out.linear(
            h.mean((2, 3)) * scale, self.squeeze.weight, self.squeeze.bias, in_slice=own
        )
        s = slice_out.linear(F.silu(s), self.excite.weight, self.excite.bias, out_slice=own)
        h = h * s.sigmoid()[..., None, None]
        return x + slice_out.conv2d(h * scale, self.conv2.weight, self.conv2.bias, in_slice=own)

    def masked(self, x, own):
        h = F.silu(self.norm(self.conv1(x)))
        h = self.deep(h)
        kept = reference.keep_units(h, own.mask(), own.scale, dim=1)
        s = self.excite(F.silu(self.squeeze(kept.mean((2, 3)))))
        return x + self.conv2(kept * s.sigmoid()[..., None, None])


def test_a_sliced_branch_is_the_masked_one():
    branch = Branch().double()
    x, upstream = (torch.randn(4, 8, 5, 5).double() for _ in range(2))
    for own in slices(16, 0.5, align=2):
        made = [
            value_and_grads(lambda x, f=f, own=own: f(x, own), x, list(branch.parameters()),
                            upstream)
            for f in (branch.sliced, branch.masked)
        ]  # fmt: skip
        assert_equal_to(*made)


class Classifier(nn.Module):
    """A batch norm behind the sliced units: its variance is that of training."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 32)
        nn.init.orthogonal_(self.up.weight)
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 4)
        self.other = nn.BatchNorm1d(32)

    def forward(self, x):
        if not self.training:
            return self.head(self.norm(self.down(F.relu(self.up(x)))))
        own = Slice.draw(64, 0.75, align=8)
        h = F.relu(slice_out.linear(x, self.up.weight, self.up.bias, out_slice=own)) * own.scale
        h = slice_out.linear(h, self.down.weight, self.down.bias, in_slice=own)
        return self.head(self.norm(h))


def _trained():
    model = Classifier()
    data = torch.randn(1024, 64)
    labels = (data[:, :2] > 0).long() @ torch.tensor([1, 2])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(data), labels).backward()
        optimizer.step()
    return model, data, labels


def test_recalibration_restores_the_statistics_and_the_loss():
    model, data, labels = _trained()

    def loss():
        model.eval()
        with torch.no_grad():
            found = F.cross_entropy(model(data), labels).item()
        model.train()
        return found

    before, sliced = loss(), model.norm.running_var.clone()
    model.norm.train(False)
    counted = model.norm.num_batches_tracked.clone()
    loader = [(data[i : i + 256], labels[i : i + 256]) for i in range(0, 1024, 256)]
    assert slice_out.recalibrate_bn(model, loader) == 1
    with torch.no_grad():
        full = model.down(F.relu(model.up(data)))
        variances = [full[i : i + 256].var(0) for i in range(0, 1024, 256)]
    torch.testing.assert_close(model.norm.running_mean, full.mean(0))
    torch.testing.assert_close(model.norm.running_var, torch.stack(variances).mean(0))
    assert (sliced / model.norm.running_var).mean() > 1.2
    assert loss() < before
    assert (model.training, model.head.training, model.norm.momentum) == (True, True, 0.1)
    assert torch.equal(model.norm.num_batches_tracked, counted)


def test_the_variance_behind_a_slice_is_larger_by_the_scale():
    """Where units vary independently, as those of orthogonal weights do."""
    model, data = Classifier(), torch.randn(1024, 64)
    with torch.no_grad():
        for _ in range(200):
            model(data)
    sliced = model.norm.running_var.clone()
    slice_out.recalibrate_bn(model, [data])
    assert 3.4 < (sliced / model.norm.running_var).mean() < 4.6


def test_recalibration_leaves_the_rest_alone():
    model, data, _ = _trained()
    model.norm.eval(), model.other.running_mean.fill_(3.0)
    assert slice_out.recalibrate_bn(model, [data[:64], data[64:128], data], batches=2) == 1
    with torch.no_grad():
        full = model.down(F.relu(model.up(data[:128])))
    torch.testing.assert_close(model.norm.running_mean, full.mean(0))
    assert (model.other.running_mean == 3.0).all()
    assert (model.training, model.norm.training, model.other.training) == (True, False, True)
    before = model.norm.running_var.clone()
    with pytest.raises(RuntimeError):
        slice_out.recalibrate_bn(model, [torch.randn(4, 3)])
    assert torch.equal(model.norm.running_var, before)
    assert model.norm.momentum == 0.1


def test_what_cannot_be_recalibrated():
    model = Classifier()
    for sentence, args in (
        ("Linear has no batch norm with running statistics", (nn.Linear(2, 2), [])),
        ("batches must be a whole number of at least 1, not 0", (model, [], 0)),
        ("batches must be a whole number of at least 1, not 1.5", (model, [], 1.5)),
        ("the loader has no batch", (model, [])),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            slice_out.recalibrate_bn(*args)
    with pytest.raises(TypeError, match="loader must give batches one by one, not be of int"):
        slice_out.recalibrate_bn(model, 3)
    assert model.training
