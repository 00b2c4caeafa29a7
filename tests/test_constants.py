"""What both languages know, compared in the sources: on any build."""

import re
from pathlib import Path

import pytest

from cases import TILES
from sparsedrop import _native
from sparsedrop.masks.tensors import MASK_UNIT
from sparsedrop.ops import ACTIVATIONS
from sparsedrop.select import MAX_EXTENT, TESTED, UNIT, architectures, gpu_costs

CPP = Path(__file__).parents[1] / "cpp"


def _sources():
    paths = [path for path in CPP.rglob("*") if path.suffix in (".h", ".hpp", ".cu", ".cpp")]
    assert paths
    return {path: path.read_text() for path in paths}


def _constant(name):
    """The value of `constexpr ... kName = value;`, which stands in one place."""
    found = [
        match[1]
        for text in _sources().values()
        for match in re.finditer(rf"constexpr \w+ {name} = ([^;]+);", text)
    ]
    assert len(found) == 1, f"{name} is defined {len(found)} times"
    return eval(found[0], {"INT32_MAX": 2**31 - 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kMaskUnit", MASK_UNIT),
        ("kNarrowOneIn", gpu_costs.NARROW_ONE_IN),
        ("kMaxOwnLines", gpu_costs.MAX_OWN_LINES),
        ("kMaxExtent", MAX_EXTENT + UNIT),  # operands may be padded before
        ("kMaxGroupShift", gpu_costs.LINES_IN_STEP.bit_length() - 1),
    ],
)
def test_a_constant_is_that_of_the_kernels(name, value):
    assert _constant(name) == value


def test_limits_are_those_of_the_kernels():
    text = (CPP / "gemm/sm90/config.hpp").read_text()
    match = re.search(r"constexpr Limits kLimits\{(.*?)\};", text, re.DOTALL)
    values = [int(number) for number in re.findall(r"\*/(\d+)", match[1])]
    assert architectures.WITHOUT_BUILD.limits == architectures.Limits(*values)


def test_tiles_are_those_of_the_kernels():
    text = (CPP / "gemm/sm90/config.hpp").read_text()
    listed = re.search(r"using TileConfigs = (.*?);", text, re.DOTALL)[1]
    configs = re.findall(r"TileConfig<(\d+), (\d+), (\d+), \d+>", listed)
    tiles = [architectures.Tile(int(m), int(n), MASK_UNIT, int(slot)) for m, n, slot in configs]
    assert tuple(tiles) == TILES


def test_16_bytes_are_8_elements_of_what_the_kernels_take():
    assert all(UNIT * dtype.itemsize == 16 for dtype in architectures.KERNEL_DTYPES)


@pytest.mark.skipif(_native.C is None, reason="a CPU-only build")
def test_the_build_says_what_the_sources_say():
    assert _native.C.MASK_UNIT == MASK_UNIT
    assert _native.C.MAX_EXTENT == MAX_EXTENT + UNIT
    operands = {str(d).removeprefix("torch.") for d in architectures.KERNEL_DTYPES}
    assert set(_native.C.DTYPES) == operands | {"float32", "float64"}
    assert set(_native.C.ACTIVATIONS) == {name or "none" for name in ACTIVATIONS}
    names = architectures.built()
    assert names in (("sm90",), ("sm90", "sm80"), ("sm80",))
    assert {"sm90", "sm80"} >= TESTED
    assert architectures.architecture("sm90") == architectures.WITHOUT_BUILD
    for name in names:
        assert set(architectures.architecture(name).dtypes) >= set(architectures.KERNEL_DTYPES)
    tiles = architectures.tiles_on(9, 0)
    of_sm90 = tuple(tile for tile in tiles if tile.architecture == "sm90")
    assert of_sm90 == (TILES if "sm90" in names else ())
    assert tiles[: len(of_sm90)] == of_sm90
    for capability in ((8, 0), (8, 6), (8, 9), (10, 0), (12, 0)):
        assert set(architectures.tiles_on(*capability)) <= set(tiles) - set(of_sm90)
    assert architectures.tiles_on(7, 5) == ()
