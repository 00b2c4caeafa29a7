"""WideResNets: one network of each kind, sliced between its convolutions, and under the clock."""

import json

import pytest
import torch
from network_cases import KINDS, assert_same_in_evaluation
from torch import nn

from sparsedrop.tools import cli
from sparsedrop.tools.bench import timing
from sparsedrop.tools.bench.networks import NETWORKS
from sparsedrop.tools.networks import DROP_PATH, DROPOUT, NONE, SLICE_OUT, Drop
from sparsedrop.tools.wide_resnet import WideBlock, wide_resnet

CPU = torch.device("cpu")


def test_wide_residual_networks_of_all_kinds_are_one():
    models, images = {}, torch.randn(2, 3, 8, 8)
    for kind in KINDS:
        torch.manual_seed(0)
        models[kind] = wide_resnet(10, 2, 3, 10, Drop(kind, 0.3))
        assert all(p.is_contiguous(memory_format=torch.channels_last)
                   for p in models[kind].parameters() if p.dim() == 4)  # fmt: skip
    assert_same_in_evaluation(models, images)
    widths = []
    for block in models[SLICE_OUT].blocks:
        block.norm2.register_forward_hook(lambda _, args, out: widths.append(out.shape[1]))
    models[SLICE_OUT].train()(images)
    assert widths == [24, 48, 96]  # of 32, 64 and 128
    assert [m.p for m in models[DROPOUT].modules() if isinstance(m, nn.Dropout)] == [0.3] * 3


@pytest.mark.parametrize("colours", [1, 3])
def test_blocks_work_channels_last(colours):
    model, layouts = wide_resnet(10, 2, colours, 10, Drop(SLICE_OUT, 0.3)), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: layouts.extend([*args, out]))
    images = torch.randn(2, colours, 8, 8).contiguous(memory_format=torch.channels_last)
    assert model(images).shape == (2, 10)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in layouts)


def test_drop_path_runs_the_convolutions_of_a_part_of_the_batch():
    models = []
    for drop in (Drop(DROP_PATH, 0.5), Drop(NONE, 0.0)):
        torch.manual_seed(0)
        models.append(wide_resnet(16, 2, 3, 10, drop).eval())
    images, sizes = torch.randn(6, 3, 8, 8), []
    assert torch.equal(models[0](images), models[1](images))
    for block in models[0].blocks:
        assert isinstance(block, WideBlock)
        for layer in (block.norm1, block.conv1, block.conv2):
            layer.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    models[0].train()(images).sum().backward()
    assert sizes == [6, 3, 3, 3, 3, 3] * 3, "a shortcut of convolution reads the whole batch"
    assert all(p.grad is not None for p in models[0].parameters())


@pytest.mark.parametrize("depth", [4, 11, 12])
def test_a_depth_that_no_network_has(depth):
    with pytest.raises(ValueError, match=f"has 10, 16, 22, 28, ... layers, not {depth}"):
        wide_resnet(depth, 1, 3, 10, Drop(NONE, 0.0))


@pytest.mark.parametrize(
    ("name", "parameters", "cpu_batch"),
    [("wide-resnet-28-10", 36.5, 4), ("wide-resnet-small", 2.7, 32)],
)
def test_wide_residual_networks_have_their_sizes(name, parameters, cpu_batch):
    """In millions, as the paper has them for ten classes."""
    network = NETWORKS[name]
    with torch.device("meta"):
        model = NETWORKS[name].build(Drop(NONE, 0.0))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.1)
    assert (network.batch, network.batch_on(CPU), network.p) == (128, cpu_batch, 0.3)
    images = network.inputs(2, CPU)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.shape == (2, 3, 32, 32)


def test_wide_residual_networks_are_timed_at_their_own_rate(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "BUDGETS", {"cpu": timing.Budget(1.0, 1)})
    options = ["--device", "cpu", "--batch", "1", "--out", str(tmp_path), "--whole-step"]
    options += ["--modes", "eager", "--methods", "none", "dropout", "sliceout"]
    assert cli.main(["bench", "--network", "wide-resnet-small", *options]) == 0
    (row,) = json.loads((tmp_path / "network.json").read_text())["rows"]
    assert row["p"] == 0.3
    assert list(row["speedups"]) == [SLICE_OUT]
