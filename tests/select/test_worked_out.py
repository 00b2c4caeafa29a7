"""What tiles cost on GPUs that nobody measured: from clocks, SMs and compute capability."""

from types import SimpleNamespace

import pytest
import torch

import extension_stub
from architecture_stub import AMPERE, HOPPER
from cases import BIG, OUT, TILES
from sparsedrop import _native, select
from sparsedrop.select import constants, gpus, kernels, worked_out
from sparsedrop.select.architectures import ctas_per_sm
from sparsedrop.select.gpus import CUBLAS, HALF, TF32
from sparsedrop.select.worked_out import TYPICAL_SPEED, Speed

H200 = gpus.GPUS[gpus.TYPICAL].costs
A100 = Speed(clock_ghz=1.41, memory_bytes_per_us=1.555e6, l2_bytes=40 * 2**20)


@pytest.fixture(autouse=True)
def both(monkeypatch):
    """A build with both architectures."""
    monkeypatch.setattr(_native, "C", extension_stub.C)
    select.choose.cache_clear()
    yield
    select.choose.cache_clear()


def on(gpu, capability, sms, speed, **others):
    """The product of BIG on such a GPU."""
    tiles = HOPPER if capability == (9, 0) else AMPERE
    return BIG._replace(gpu=gpu, capability=capability, sms=sms, speed=speed, tiles=tiles, **others)


# Dense BF16 TFLOP/s with sums in float32, SMs and boost clock, as NVIDIA gives them.
DATA_SHEETS = [
    ("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 312.0),
    ("NVIDIA A40", (8, 6), 84, 1.74, 149.7),
    ("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, 71.0),
    ("NVIDIA L40S", (8, 9), 142, 2.52, 362.0),
    ("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 165.2),
    ("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.83, 989.4),
    ("NVIDIA GeForce RTX 5090", (12, 0), 170, 2.407, 209.5),
]


@pytest.mark.parametrize(("gpu", "capability", "sms", "ghz", "tflops"), DATA_SHEETS, ids=str)
def test_rates_are_those_of_the_data_sheets(gpu, capability, sms, ghz, tflops):
    rate = worked_out.rate_of(capability, gpu).best
    assert rate * sms * ghz * 1e-3 == pytest.approx(tflops, rel=0.02)


def test_the_typical_gpu_works_out_as_it_was_measured():
    for tile in (*TILES, CUBLAS):
        cost = worked_out.cost_of(tile, (9, 0), gpus.TYPICAL, TYPICAL_SPEED, HALF)
        assert cost == pytest.approx(H200[tile])
    assert worked_out.memory_of(TYPICAL_SPEED) == gpus.H200_MEMORY


def test_costs_are_in_proportion():
    def k_tile_us(tile, capability, speed=TYPICAL_SPEED, precision=HALF):
        return worked_out.cost_of(tile, capability, "NVIDIA", speed, precision).k_tile_us

    large = AMPERE[0]
    assert k_tile_us(CUBLAS, (8, 0)) == pytest.approx(2 * H200[CUBLAS].k_tile_us)
    assert k_tile_us(large, (9, 0)) == pytest.approx(H200[large].k_tile_us)
    # By mma.sync, which is not the best instruction of the typical GPU.
    assert k_tile_us(large, (8, 0)) == pytest.approx(2 * 0.629 * H200[large].k_tile_us)
    assert k_tile_us(large, (8, 6)) == pytest.approx(2 * k_tile_us(large, (8, 0)))
    of_tf32 = gpus.GPUS[gpus.TYPICAL].tf32[large].k_tile_us
    assert k_tile_us(large, (8, 0), precision=TF32) == pytest.approx(2 * 0.629 * of_tf32)
    slow = TYPICAL_SPEED._replace(clock_ghz=0.99)
    assert k_tile_us(large, (8, 0), slow) == pytest.approx(2 * k_tile_us(large, (8, 0)))
    # Capabilities that are not named are taken for the next lower one.
    assert k_tile_us(large, (8, 7)) == k_tile_us(large, (8, 6))
    assert k_tile_us(large, (12, 1)) == k_tile_us(large, (12, 0))
    # An extent that the typical GPU's tiles do not have: as the smallest tile, in proportion
    wide = select.Tile(64, 256, 64, 64, "sm80")
    assert k_tile_us(wide, (9, 0)) == pytest.approx(2 * H200[AMPERE[2]].k_tile_us)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids=str)
def test_two_small_tiles_share_an_sm_that_has_room_for_them(capability):
    has_room = capability not in ((8, 6), (8, 9), (12, 0))
    assert [ctas_per_sm(tile, capability) for tile in AMPERE] == [1, 1 + has_room, 1 + has_room]
    assert all(ctas_per_sm(tile, capability) == 1 for tile in TILES)


def test_the_choice_says_where_its_costs_are_from():
    assert select.choose(BIG).reason.endswith("by costs measured on NVIDIA H200")
    h100 = on("NVIDIA H100 PCIe", (9, 0), 114, TYPICAL_SPEED._replace(clock_ghz=1.755))
    assert select.choose(h100).reason.endswith(
        "by costs worked out from 114 SMs at 1.75 GHz, as measured on NVIDIA H200"
    )
    a100 = select.choose(on("NVIDIA A100", (8, 0), 108, A100))
    assert a100.reason.endswith("by costs worked out from 108 SMs at 1.41 GHz")
    unsaid = select.choose(on("NVIDIA A100", (8, 0), 108, None))
    assert unsaid.reason.endswith("by costs worked out from 108 SMs")


def test_a_slower_clock_takes_longer():
    fast = on("NVIDIA H100", (9, 0), 132, TYPICAL_SPEED)
    slow = fast._replace(speed=TYPICAL_SPEED._replace(clock_ghz=1.5))
    choice = select.choose(fast)
    assert select.expected_us(fast, choice) == pytest.approx(select.expected_us(BIG, choice))
    assert select.expected_us(slow, choice) > select.expected_us(fast, choice)
    assert select.dense_us(slow) > select.dense_us(fast)


def test_memory_counts():
    """Where b is more than stays in the cache, and has to be read again and again."""
    request = on("NVIDIA A100", (8, 0), 108, A100, m=65536, n=8192, k=8192)
    slow = request._replace(speed=A100._replace(memory_bytes_per_us=0.2e6))
    choice = select.Choice("kernel", 0)
    assert select.expected_us(slow, choice) > 1.5 * select.expected_us(request, choice)
    assert select.dense_us(slow) > select.dense_us(request)  # masked copies
    assert constants.memory_of(request).cache_bytes == pytest.approx(40e6 * 40 / 60)


@pytest.mark.parametrize(("gpu", "capability", "sms"), [case[:3] for case in DATA_SHEETS], ids=str)
def test_half_dropped_is_a_clear_gain(gpu, capability, sms):
    choice = select.choose(on(gpu, capability, sms, A100))
    assert choice.path == "kernel"


def test_what_may_be_no_gain_runs_densely():
    little = on("NVIDIA A100", (8, 0), 108, A100, a_keep=0.95)
    choice = select.choose(little)
    assert choice.path == "dense"
    assert "where 1.25 times as fast would be clear" in choice.reason
    # The same gain of kernels that were measured is taken.
    measured = select.choose(on("NVIDIA H100", (9, 0), 132, A100, a_keep=0.9))
    assert measured.path == "kernel"
    assert "would be clear" not in measured.reason


def test_dense_products_are_faster_where_mma_sync_is_slow():
    for request in (BIG, OUT):
        of_b200 = request._replace(
            gpu="NVIDIA B200", capability=(10, 0), sms=148, speed=TYPICAL_SPEED, tiles=AMPERE
        )
        choice = select.choose(of_b200)
        assert choice.path == "dense"
        assert "us expected, dense" in choice.reason


def test_tf32_on_hopper_is_weighed_against_dense_tf32():
    how = {"dtype": torch.float32, "tf32": True}
    request = on("NVIDIA H200", (9, 0), 132, TYPICAL_SPEED, a_keep=0.7, **how)
    assert select.choose(request).path == "dense"
    sparse = select.choose(request._replace(a_keep=0.2))
    assert sparse.path == "kernel"
    assert HOPPER[sparse.tile].architecture == "sm80"
    # Dense products in float32 take twice as long as those in 16 bits, and a little more.
    assert 2.0 < select.dense_us(request) / select.dense_us(BIG) < 2.3


def test_the_speed_is_what_torch_says():
    h200 = SimpleNamespace(
        clock_rate=1_980_000,
        memory_clock_rate=3_201_000,
        memory_bus_width=6144,
        L2_cache_size=60 * 2**20,
    )
    speed = kernels.speed_of(h200)
    assert speed == pytest.approx(TYPICAL_SPEED, rel=0.01)
    assert kernels.speed_of(SimpleNamespace(clock_rate=1_000_000)) == (1.0, *TYPICAL_SPEED[1:])
    assert kernels.speed_of(SimpleNamespace()) is None


def test_a_layer_and_a_stack_need_a_clear_gain_too():
    request = on("NVIDIA A100", (8, 0), 108, A100, a_keep=0.85)
    dense = request._replace(a_block=None, a_keep=None)
    layer = (
        request,
        dense._replace(out_block=(128, 128), out_keep=0.85, b_k_major=True),
        dense._replace(b_block=(128, 128), b_keep=0.85, a_k_major=False),
    )
    choice = select.choose_layer(layer)
    assert choice.path == "dense"
    assert "where 1.25 times as fast would be clear, by costs worked out" in choice.reason
    stack = select.choose_stack((layer,), (4096,))
    assert (stack.path, stack.reason) == ("dense", choice.reason)
    half = tuple(
        r._replace(a_keep=r.a_keep and 0.4, b_keep=r.b_keep and 0.4, out_keep=r.out_keep and 0.4)
        for r in layer
    )
    assert select.choose_layer(half).path == select.choose_stack((half,), (4096,)).path == "kernel"
