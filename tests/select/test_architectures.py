"""Two architectures of one build: which is taken, for which dtypes, and how one is forced."""

import pytest
import torch

import extension_stub
from architecture_stub import AMPERE, HOPPER
from cases import BIG, only
from sparsedrop import _native, select
from sparsedrop.select import Choice, architectures, overriding
from sparsedrop.select.gpus import CUBLAS, HALF, TF32, Cost
from sparsedrop.select.saved import Saved

CHEAP = Cost(launch_us=1.0, tile_us=0.1, k_tile_us=0.05)
DEAR = Cost(launch_us=5.0, tile_us=5.0, k_tile_us=2.0)


def measured(*precisions, ours=CHEAP, dense=DEAR):
    """Costs of the tiles of sm80 in a file of the user's."""
    costs = [
        (p, tile, ours if tile != CUBLAS else dense)
        for p in precisions
        for tile in (*AMPERE, CUBLAS)
    ]
    return Saved("costs.json", tuple(costs))


ON_HOPPER = BIG._replace(tiles=HOPPER)
ON_AMPERE = BIG._replace(tiles=AMPERE, capability=(8, 0), gpu="NVIDIA A100", sms=108)
FLOAT32 = ON_HOPPER._replace(dtype=torch.float32)
FIRST_OF_SM80 = 4


@pytest.fixture(autouse=True)
def both(monkeypatch):
    """A build with both architectures."""
    monkeypatch.setattr(_native, "C", extension_stub.C)
    select.choose.cache_clear()
    yield
    select.choose.cache_clear()


def test_the_build_says_what_its_architectures_take():
    sm90, sm80 = map(select.architecture, ("sm90", "sm80"))
    assert sm90.dtypes == (torch.bfloat16, torch.float16)
    assert sm80.dtypes == (torch.bfloat16, torch.float16, torch.float32)
    assert sm90.limits == sm80.limits == (8, 128, 8192)
    assert architectures.built() == ("sm90", "sm80")
    assert architectures.tiles_on(9, 0) == HOPPER
    assert architectures.tiles_on(8, 6) == architectures.tiles_on(12, 0) == AMPERE
    assert architectures.tiles_on(7, 5) == ()


def test_ids_count_within_an_architecture():
    assert [architectures.id_within(HOPPER, i) for i in range(7)] == [0, 1, 2, 3, 0, 1, 2]


def test_on_hopper_the_first_is_taken():
    choice = select.choose(ON_HOPPER)
    assert choice[:4] == ("kernel", 0, False, 1)
    assert choice.reason.startswith("sm90 tile 128x256x64: ")
    assert choice == select.choose(BIG)


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_was_never_tested_is_not_taken_unasked(dtype):
    choice = select.choose(ON_AMPERE._replace(dtype=dtype))
    assert choice.path == "dense"
    assert choice.reason.startswith("the kernels of sm80 have passed no tests on a GPU yet")


@pytest.mark.parametrize("request_", [ON_HOPPER, ON_AMPERE], ids=["hopper", "ampere"])
def test_an_architecture_is_forced(request_):
    with select.override(architecture="sm80"):
        choice = select.decide(request_)
        assert choice.path == "kernel"
        assert request_.tiles[choice.tile].architecture == "sm80"
        # Where dense products would be faster, too.
        assert select.decide(request_._replace(m=128, n=128, k=128)).path == "kernel"
        assert select.forced_architecture() == "sm80"
    assert select.forced_architecture() is None


@pytest.mark.parametrize("tile", [0, 1, 2])
def test_a_tile_is_counted_within_the_forced_architecture(tile):
    with select.override(architecture="sm80", tile=tile):
        assert select.decide(ON_HOPPER)[:2] == ("kernel", FIRST_OF_SM80 + tile)
        assert select.decide(ON_AMPERE)[:2] == ("kernel", tile)
    with select.override(architecture="sm90", tile=tile):
        assert select.decide(ON_HOPPER).tile == tile
    with select.override(tile=FIRST_OF_SM80 + tile):
        assert select.decide(ON_HOPPER).tile == FIRST_OF_SM80 + tile


def test_forced_kernels_are_those_of_the_best_architecture():
    with select.override(path="kernel"):
        assert select.decide(ON_HOPPER).tile < FIRST_OF_SM80
        assert select.decide(ON_AMPERE).path == "kernel"
        assert select.decide(FLOAT32._replace(tf32=True)).tile >= FIRST_OF_SM80


@pytest.mark.parametrize(
    ("forced", "request_", "sentence"),
    [
        ({"architecture": "sm90"}, ON_AMPERE, "compute capability 8.0 runs the kernels of sm80"),
        (
            {"architecture": "sm80"},
            ON_AMPERE._replace(tiles=(), capability=(7, 5)),
            "no kernels for compute capability 7.5",
        ),
        ({"architecture": "sm80", "tile": 3}, ON_HOPPER, "there are tiles 0 to 2"),
        ({"architecture": "sm80"}, ON_HOPPER._replace(device="cpu"), "which has no tiles"),
        ({"architecture": "sm90"}, FLOAT32._replace(tf32=True), "sm90 has no kernels for torch.fl"),
        ({"architecture": "sm80"}, FLOAT32, "set_float32_matmul_precision"),
        ({"architecture": "sm80"}, ON_HOPPER._replace(dtype=torch.float64), "for torch.float64"),
    ],
    ids=str,
)
def test_an_architecture_that_cannot_run_raises(forced, request_, sentence):
    with select.override(**forced), pytest.raises(ValueError, match=sentence):
        select.decide(request_)


def test_an_architecture_that_the_build_lacks_raises(monkeypatch):
    sentence = "this build has kernels of sm90 and sm80, not of 'sm70'"
    with pytest.raises(ValueError, match=sentence), select.override(architecture="sm70"):
        pass
    monkeypatch.setattr(_native, "C", None)
    sentence = "this build has kernels of no architecture, not of 'sm80'"
    with pytest.raises(ValueError, match=sentence), select.override(architecture="sm80"):
        pass


def test_the_environment_forces_an_architecture(monkeypatch):
    forced = select.override_from("architecture=sm80,tile=1")
    assert forced == select.Override(architecture="sm80", tile=1)
    monkeypatch.setattr(overriding, "_forced", forced)
    assert select.decide(ON_HOPPER).tile == FIRST_OF_SM80 + 1
    with pytest.raises(ValueError, match=r"SPARSEDROP_SELECT .* not 'architecture='"):
        select.override_from("architecture=")


@pytest.mark.usefixtures("untested")
def test_float32_needs_tf32_and_kernels_for_it():
    assert "TF32 only, which torch is not allowed to use" in select.choose(FLOAT32).reason
    allowed = FLOAT32._replace(tf32=True)
    assert "sm80 have passed no tests" in select.choose(allowed).reason
    assert select.choose(BIG._replace(dtype=torch.float32, tf32=True)).reason == (
        "no kernels for torch.float32"
    )
    taken = select.choose(allowed._replace(saved=measured(TF32)))
    assert taken.path == "kernel"
    assert taken.tile >= FIRST_OF_SM80
    refused = select.choose(allowed._replace(saved=measured(TF32), tf32=False))
    assert refused.path == "dense"


def test_the_costs_of_dense_tf32_decide():
    allowed = FLOAT32._replace(tf32=True, saved=measured(TF32, ours=DEAR, dense=CHEAP))
    choice = select.choose(allowed)
    assert choice.path == "dense"
    assert "us expected, dense" in choice.reason


def test_a_conversion_gains_in_tf32_where_it_was_measured():
    layers = (select.MaskedLayer(4096, 4096),)
    facts = {"capability": (9, 0), "gpu": "NVIDIA H200", "sms": 132, "tiles": HOPPER}
    measured_facts = {**facts, "saved": measured(TF32), "tf32": True}
    for of, gains in ((measured_facts, True), ({**measured_facts, "tf32": False}, False)):
        place = select.Place("cuda", torch.float32, 4096, 4096, 0.5, (128, 128), tuple(of.items()))
        assert (select.expected_gain(place, layers).speedup > 1.0) == gains


@pytest.mark.usefixtures("untested")
def test_what_the_user_measured_is_taken():
    choice = select.choose(ON_AMPERE._replace(saved=measured(HALF)))
    assert choice.path == "kernel"
    assert choice.reason.endswith("by costs from costs.json")
    # In that precision only.
    assert select.choose(ON_AMPERE._replace(saved=measured(TF32))).path == "dense"
    # The first architecture stays the first.
    assert select.choose(ON_HOPPER._replace(saved=measured(HALF))).tile < FIRST_OF_SM80


def test_the_limits_are_the_architectures_own(monkeypatch):
    sm90, sm80 = extension_stub.C.ARCHITECTURES
    tight = sm80._replace(limits=(2, *sm80.limits[1:]))
    monkeypatch.setattr(extension_stub.C, "ARCHITECTURES", [sm90, tight])
    request = only(b_block=(128, 128))._replace(m=512, n=512, tiles=HOPPER)
    for tile, most in ((1, 8), (FIRST_OF_SM80 + 1, 2)):
        assert select.refusal(request, Choice("kernel", tile, True, most)) is None
        why = select.refusal(request, Choice("kernel", tile, True, most + 1))
        assert why == f"a tile is split into 1 to {most} along k, not {most + 1}"


def test_an_older_build_has_no_dtypes(monkeypatch):
    class Older:
        name, tiles = "sm90", [(128, 256, 64, 128)]
        max_split_k, max_split_n, max_split_slots = 4, 64, 100

    monkeypatch.setattr(extension_stub.C, "ARCHITECTURES", [Older])
    assert select.architecture("sm90") == ("sm90", select.KERNEL_DTYPES, (4, 64, 100))


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    ("request_", "forced", "takes"),
    [
        (ON_HOPPER, {}, True),
        (ON_AMPERE, {}, False),
        (ON_AMPERE, {"architecture": "sm80"}, True),
        (ON_AMPERE, {"architecture": "sm90"}, False),
        (ON_AMPERE._replace(saved=measured(HALF)), {}, True),
        (FLOAT32, {"architecture": "sm80"}, False),
        (FLOAT32._replace(tf32=True), {"architecture": "sm80"}, True),
        (FLOAT32._replace(tf32=True), {}, False),
        (ON_HOPPER._replace(dtype=torch.float64), {}, False),
        (ON_HOPPER._replace(tiles=()), {}, False),
    ],
    ids=str,
)
def test_whether_kernels_are_taken_at_all(request_, forced, takes):
    with select.override(**forced):
        assert select.takes_kernels(request_) == takes
