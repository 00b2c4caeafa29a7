"""Masks that a kernel of ours draws: the generator's state, the layout in memory, capture."""

import copy
import ctypes
import io

import pytest
import torch

import sparsedrop
from cases import value_and_grads
from sparsedrop import BlockMask, _native
from sparsedrop.masks import tensors as mask_tensors

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
SHAPE, BLOCK = (640, 2300), (128, 64)  # a grid of [5, 36], in words [5, 2] and [36, 1]


class Generator(torch.Generator):
    """Stands for a GPU's generator, whose state is a seed and an offset."""

    first_seed, offset = 7, 40

    def initial_seed(self):
        return self.first_seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset


class Writer:
    """Stands for `_C`: draws a pattern, and writes words that say where they lie."""

    def __init__(self):
        self.draws, self.built = [], 0

    def bernoulli_mask(self, keep, seed, offset, *rest):
        grid, (live, row_words, col_words) = rest[:4], rest[4:7]
        self.draws.append((keep, seed, offset, grid))
        count = -(-grid[0] // grid[2]) * -(-grid[1] // grid[3])
        cells = bytes(i % 3 == 0 for i in range(count))
        ctypes.memmove(live, cells, len(cells))
        if not row_words:
            return
        for address, first, count in ((row_words, 1000, 10), (col_words, 2000, 36)):
            words = (ctypes.c_int32 * count)(*range(first, first + count))
            ctypes.memmove(address, words, 4 * count)

    def mask_words(self, *args):
        self.built += 1


@pytest.fixture
def writer(monkeypatch):
    """Lets CPU tensors pass for a GPU's."""
    stub = Writer()
    stub.generator = Generator()
    monkeypatch.setattr(_native, "C", stub)
    monkeypatch.setattr(_native, "runs_on", lambda device: True)
    monkeypatch.setattr(_native, "runs_portable", lambda device: True)
    monkeypatch.setattr(_native, "launch_target", lambda device: (0, 0))
    monkeypatch.setattr(_native, "default_generator", lambda device: stub.generator)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return stub


def _draw(**kwargs):
    return BlockMask.bernoulli(SHAPE, 0.25, block_shape=BLOCK, device=CPU, **kwargs)


def _written():
    live = torch.tensor([i % 3 == 0 for i in range(5 * 36)]).view(5, 36)
    row_words = torch.arange(1000, 1010, dtype=torch.int32).view(5, 2)
    return live, row_words, torch.arange(2000, 2036, dtype=torch.int32).view(36, 1)


def _assert_is_written(mask):
    for tensor, expected in zip(
        (mask.live, mask.row_words, mask.col_words), _written(), strict=True
    ):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


def test_one_launch_draws_all(writer):
    mask = _draw()
    assert writer.draws == [(0.75, 7, 40, (*SHAPE, *BLOCK))]
    assert not writer.built
    assert mask.keep == 0.75
    assert mask.tensors.addresses() == tuple(
        tensor.data_ptr() for tensor in (mask.live, mask.row_words, mask.col_words)
    )
    _assert_is_written(mask)
    assert mask.live is mask.live


def test_a_draw_advances_the_generator_as_one_of_torch_does(writer):
    _draw()
    _draw()
    assert [offset for _, _, offset, _ in writer.draws] == [40, 44]
    given = Generator()
    given.first_seed, given.offset = 8, 0
    _draw(generator=given)
    assert writer.draws[-1][1:3] == (8, 0)
    assert (writer.generator.offset, given.offset) == (48, 4)


def test_the_registered_op_draws_the_same_into_tensors_of_their_own(writer):
    tensors = torch.ops.sparsedrop.bernoulli_mask(*SHAPE, *BLOCK, p=0.25, device=CPU)
    assert writer.draws == [(0.75, 7, 40, (*SHAPE, *BLOCK))]
    for tensor, expected in zip(tensors, _written(), strict=True):
        assert torch.equal(tensor, expected)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 3


@pytest.mark.parametrize("why", ["a graph is captured", "the GPU is too old"])
def test_torch_draws_where_no_kernel_can(why, writer, monkeypatch):
    if why == "a graph is captured":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    else:
        monkeypatch.setattr(_native, "runs_portable", lambda device: False)
    torch.manual_seed(3)
    mask = _draw()
    torch.manual_seed(3)
    assert torch.equal(mask.live, torch.empty(5, 36, dtype=torch.bool).bernoulli_(0.75))
    assert (writer.draws, writer.built, writer.generator.offset) == ([], 1, 40)


def test_of_blocks_that_no_kernel_reads_the_grid_alone_is_drawn(writer):
    mask = BlockMask.bernoulli(SHAPE, 0.25, block_shape=(128, 48), device=CPU)
    assert mask.row_words.shape == mask.col_words.shape == (0, 0)
    assert writer.draws == [(0.75, 7, 40, (*SHAPE, 128, 48))]
    assert (writer.built, writer.generator.offset) == (0, 44)
    assert torch.equal(mask.live.flatten(), torch.arange(5 * 48) % 3 == 0)


@pytest.mark.parametrize("shape", [(0, 128), (128, 0), (0, 0)])
def test_nothing_to_draw(shape, writer):
    mask = BlockMask.bernoulli(shape, 0.5, device=CPU)
    assert mask.live.numel() == 0
    assert not writer.draws


def test_a_transpose_swaps_the_views(writer):
    mask = _draw()
    assert torch.equal(mask.T.live, _written()[0].t())
    assert mask.T.row_words is mask.col_words
    assert mask.T.col_words is mask.row_words


def test_what_is_saved_is_the_grid(writer):
    mask, saved = _draw(), io.BytesIO()
    torch.save(mask, saved)
    saved.seek(0)
    for other in (torch.load(saved, weights_only=False), copy.deepcopy(mask), copy.copy(mask)):
        assert torch.equal(other.live, mask.live)
        assert (other.shape, other.block_shape, other.keep) == (SHAPE, BLOCK, 0.75)


@pytest.mark.parametrize("cut_first", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_drawn_mask_as_a_compiled_functions_argument(backend, cut_first, writer, monkeypatch):
    mask = _draw()
    monkeypatch.undo()
    if cut_first:
        _assert_is_written(mask)

    def layer(x, weight, mask):
        return sparsedrop.linear(x, weight, x_mask=mask), mask.T.live

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x, weight = torch.randn(SHAPE).double(), torch.randn(16, SHAPE[1]).double()
    upstream = torch.randn(SHAPE[0], 16).double()
    for _ in range(2):
        assert torch.equal(compiled(x, weight, mask)[1], _written()[0].t())
        ours, expected = (
            value_and_grads(lambda *args, f=f: f(*args, mask)[0], [x, weight], upstream)
            for f in (compiled, layer)
        )
        for own, truth in zip(ours, expected, strict=True):
            torch.testing.assert_close(own, truth)


def test_layouts_are_aligned_and_disjoint():
    for grid in ((640, 2300, 128, 64), (1, 1, 64, 64), (70_000, 100, 64, 128), (5, 9000, 192, 64)):
        lies = mask_tensors.layout(*grid)
        rows, cols = mask_tensors.grid_shape(*grid)
        assert lies.live == (rows, cols)
        assert lies.col_words_at == 4 * lies.row_words[0] * lies.row_words[1]
        assert lies.live_at == lies.col_words_at + 4 * lies.col_words[0] * lies.col_words[1]
        assert 0 <= 4 * lies.size - (lies.live_at + rows * cols) < 4


def _philox(seed, position, subsequence):
    """The first word of Philox4x32-10 for a key and a counter."""
    words = [position, position >> 32, subsequence, subsequence >> 32]
    words, keys = [word & 0xFFFFFFFF for word in words], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            second >> 32 ^ words[1] ^ keys[0],
            second & 0xFFFFFFFF,
            first >> 32 ^ words[3] ^ keys[1],
            first & 0xFFFFFFFF,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words[0]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "block"),
    [((640, 1000), (128, 64)), ((5000, 70), (64, 64)), ((70, 9000), (64, 192)), ((1, 1), (64, 64))],
)
def test_a_drawn_mask_follows_its_definition(shape, block):
    generator = torch.Generator(GPU).manual_seed(2**63 + 12345)
    torch.rand(1000, device=GPU, generator=generator)
    offset = generator.get_offset()
    mask = BlockMask.bernoulli(shape, 0.3, block_shape=block, device=GPU, generator=generator)
    assert generator.get_offset() == offset + 4
    assert mask.tensors.addresses() == tuple(
        tensor.data_ptr() for tensor in (mask.live, mask.row_words, mask.col_words)
    )
    count, seed = mask.live.numel(), generator.initial_seed()
    below = round(0.7 * 2**32)
    live = [_philox(seed, offset // 4, i) < below for i in range(count)]
    assert mask.live.flatten().tolist() == live
    built = BlockMask.from_live(mask.live, shape, block_shape=block)
    assert torch.equal(mask.row_words, built.row_words)
    assert torch.equal(mask.col_words, built.col_words)


@pytest.mark.gpu
@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_drawn_blocks_are_dropped_with_probability_p(p):
    grid = (1000, 1200)
    shape = (64 * grid[0], 64 * grid[1])
    first, second = (
        BlockMask.bernoulli(shape, p, block_shape=(64, 64), device=GPU).live.double()
        for _ in range(2)
    )
    sigma = (p * (1 - p)) ** 0.5
    centred = first - (1 - p)
    assert abs(centred.mean().item()) <= 5 * sigma / first.numel() ** 0.5
    assert centred.mean(0).abs().max().item() <= 5.5 * sigma / grid[0] ** 0.5
    assert centred.mean(1).abs().max().item() <= 5.5 * sigma / grid[1] ** 0.5
    # Neighbours, and one draw and the next, are independent.
    for other in (centred[:, 1:], centred[1:], second - (1 - p)):
        product = centred[: other.shape[0], : other.shape[1]] * other
        assert abs(product.mean().item()) <= 5 * sigma**2 / product.numel() ** 0.5


@pytest.mark.gpu
def test_a_draw_follows_the_state_of_torchs_generator():
    def draw():
        return BlockMask.bernoulli((4096, 4096), 0.5, device=GPU).live

    torch.manual_seed(11)
    first = draw()
    state = torch.cuda.get_rng_state()
    noise, second = torch.rand(100, device=GPU), draw()
    assert not torch.equal(first, second)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(100, device=GPU), noise)
    assert torch.equal(draw(), second)
    torch.cuda.set_rng_state(state)
    assert not torch.equal(draw(), second)  # a draw in between moves what follows
    assert not torch.equal(torch.rand(100, device=GPU), noise)
    torch.manual_seed(11)
    assert torch.equal(draw(), first)
    with torch.random.fork_rng(devices=[0]):
        draw()
    assert torch.equal(torch.rand(100, device=GPU), noise)


@pytest.mark.gpu
def test_a_generator_of_another_device_is_refused():
    with pytest.raises(RuntimeError, match="generator"):
        BlockMask.bernoulli((256, 256), 0.5, device=GPU, generator=torch.Generator("cpu"))


@pytest.mark.gpu
def test_eager_draws_go_on_after_a_captured_graph():
    """A replay advances the state that the host reads; no two draws are the same."""
    BlockMask.bernoulli((4096, 4096), 0.5, device=GPU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = BlockMask.bernoulli((4096, 4096), 0.5, device=GPU)
    lives = []
    for _ in range(3):
        graph.replay()
        lives += [captured.live.clone(), BlockMask.bernoulli((4096, 4096), 0.5, device=GPU).live]
    assert len({tuple(live.flatten().tolist()) for live in lives}) == len(lives)
    built = BlockMask.from_live(captured.live, captured.shape)
    assert torch.equal(captured.row_words, built.row_words)
