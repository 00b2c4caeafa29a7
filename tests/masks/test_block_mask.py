"""BlockMask: grids, transposes, expansion, pictures, and what the kernels read."""

import copy
import io

import pytest
import torch

from cases import random_mask
from sparsedrop import BlockMask
from sparsedrop.masks import tensors as mask_tensors

SHAPES = [
    ((256, 384), (128, 128)),
    ((300, 500), (64, 128)),
    ((7, 5000), (128, 64)),
    ((5000, 70), (64, 64)),
    ((10, 9), (3, 4)),
    ((1, 1), (128, 128)),
]


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_expand_is_the_grid_over_the_matrix(shape, block, device):
    mask = random_mask(shape, block, device)
    full = mask.expand()
    assert tuple(full.shape) == shape
    for r, row in enumerate(mask.live.tolist()):
        for c, live in enumerate(row):
            cell = full[r * block[0] : (r + 1) * block[0], c * block[1] : (c + 1) * block[1]]
            assert bool((cell == live).all())


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_transpose_is_free_and_right(shape, block, device):
    mask = random_mask(shape, block, device)
    assert torch.equal(mask.T.expand(), mask.expand().t())
    assert mask.T.shape == shape[::-1]
    assert mask.T.block_shape == block[::-1]
    assert mask.T.live.data_ptr() == mask.live.data_ptr()
    assert mask.T.row_words is mask.col_words
    assert mask.T.col_words is mask.row_words


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_density_counts_elements(shape, block, device):
    mask = random_mask(shape, block, device)
    assert mask.density() == pytest.approx(mask.expand().double().mean().item())
    assert mask.T.density() == pytest.approx(mask.density())


def test_density_of_nothing():
    assert BlockMask.bernoulli((0, 128), 0.5).density() == 1.0


def test_words_are_empty_on_the_cpu():
    mask = random_mask((256, 256), (128, 128), torch.device("cpu"))
    assert mask.row_words.shape == mask.col_words.shape == (0, 0)
    assert mask.row_words.dtype == torch.int32


def _words(mask):
    """row_words of a mask by their definition."""
    (rows, cols), (block_rows, _) = mask.shape, mask.block_shape
    full = mask.expand().cpu()[::block_rows]  # one row of each block row
    units = -(-cols // 64)
    words = torch.zeros(-(-rows // block_rows), -(-units // 32), dtype=torch.int64)
    for u in range(units):
        words[:, u // 32] |= full[:, 64 * u].long() << (u % 32)
    return torch.where(words >= 2**31, words - 2**32, words).int()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((256, 384), (128, 128)),
        ((8200, 300), (64, 128)),
        ((5, 9000), (128, 64)),
        ((4100, 4100), (128, 256)),
        ((4100, 4100), (192, 64)),
        ((64, 64), (4096, 4096)),
    ],
)
def test_words_follow_their_definition(shape, block):
    mask = random_mask(shape, block, torch.device("cuda"))
    assert torch.equal(mask.row_words.cpu(), _words(mask))
    assert torch.equal(mask.col_words.cpu(), _words(mask.T))


@pytest.mark.gpu
def test_words_are_empty_where_no_kernel_reads_them():
    mask = random_mask((256, 256), (128, 48), torch.device("cuda"))
    assert mask.row_words.shape == mask.col_words.shape == (0, 0)


@pytest.mark.gpu
def test_to_moves_between_devices():
    mask = random_mask((300, 500), (128, 64), torch.device("cpu"))
    moved = mask.T.to("cuda")
    assert moved.device.type == "cuda"
    assert torch.equal(moved.expand().cpu(), mask.T.expand())
    assert torch.equal(moved.row_words.cpu(), _words(mask.T))
    assert torch.equal(moved.to("cpu").live, mask.live.t())


def test_to_its_own_device_is_itself(device):
    mask = random_mask((300, 500), (128, 64), device)
    assert mask.to(device) is mask


def test_from_live_copies_the_grid(device):
    live = torch.ones(2, 2, dtype=torch.bool, device=device)
    mask = BlockMask.from_live(live, (256, 256))
    live.zero_()
    assert bool(mask.live.all())
    assert mask.keep is None


def test_from_live_takes_a_strided_grid(device):
    live = (torch.rand(3, 2) < 0.5).to(device)
    mask = BlockMask.from_live(live.t(), (256, 384))
    assert mask.live.is_contiguous()
    assert torch.equal(mask.live, live.t())


def test_picture():
    live = torch.tensor([[True, False], [False, True]])
    head, *rows = str(BlockMask.from_live(live, (4, 4), block_shape=(2, 2))).splitlines()
    assert rows == ["#.", ".#"]
    assert "(4, 4)" in head
    assert "density 0.500" in head


def test_picture_of_a_large_mask_is_cropped():
    lines = str(BlockMask.bernoulli((1000, 1000), 0.5, block_shape=(1, 1))).splitlines()
    assert len(lines) == 66
    assert max(map(len, lines[1:])) == 66


def test_frozen_and_equal_only_to_itself(device):
    mask = random_mask((256, 256), (128, 128), device)
    twin = BlockMask.from_live(mask.live, mask.shape)
    assert mask != twin
    assert len({mask, twin}) == 2
    with pytest.raises(AttributeError):
        mask.shape = (1, 1)


def test_a_saved_mask_is_rebuilt_where_it_is_loaded(device):
    mask = random_mask((300, 200), (128, 64), device)
    saved = io.BytesIO()
    torch.save(mask, saved)
    saved.seek(0)
    loaded = torch.load(saved, map_location=device, weights_only=False)
    for other in (loaded, copy.deepcopy(mask), copy.deepcopy(mask.T).T):
        assert other.device == mask.device
        assert (other.shape, other.block_shape, other.keep) == (
            mask.shape,
            mask.block_shape,
            mask.keep,
        )
        for name in ("live", "row_words", "col_words"):
            assert torch.equal(getattr(other, name), getattr(mask, name))


def test_a_default_device_does_not_confuse_cpu_masks():
    with torch.device("meta"):
        mask = BlockMask.balanced((60, 70), 0.3, block_shape=(10, 10), device="cpu")
        assert mask.density() in (4 / 7, 5 / 7)
        assert "#" in str(mask)


def test_a_mask_outlives_a_transform_that_looked_at_it():
    live = torch.tensor([[True, False], [False, True]])
    lies = mask_tensors.layout(256, 256, 128, 128)
    buffer = torch.zeros(lies.size, dtype=torch.int32)
    buffer[lies.live_at // 4 :].view(torch.bool)[: live.numel()] = live.flatten()
    tensors = mask_tensors.MaskTensors(None, buffer, lies)
    mask = BlockMask((256, 256), (128, 128), 0.5, tensors)
    torch.func.grad(lambda x: (x * mask.expand()).sum())(torch.ones(256, 256))
    assert torch.equal(mask.live, live)
    assert mask.T.live.data_ptr()
