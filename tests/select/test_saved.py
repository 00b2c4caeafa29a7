"""The costs that a user has measured, in the cache folder: read once, and only where they fit."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch

import extension_stub
from architecture_stub import AMPERE, HOPPER
from cases import BIG
from sparsedrop import _native, select
from sparsedrop.select import kernels, saved
from sparsedrop.select.gpus import CUBLAS, HALF, TF32, Cost

GPU, SMS = "NVIDIA A100-SXM4-40GB", 108
COST = Cost(launch_us=4.0, tile_us=1.5, k_tile_us=0.75)
COSTS = {HALF: {**dict.fromkeys(AMPERE, COST), CUBLAS: Cost(3.0, 2.0, 9.5)}}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A cache folder of the test's own, and nothing read yet."""
    monkeypatch.setenv(saved.VARIABLE, str(tmp_path / "costs"))
    saved.saved_costs.cache_clear()
    yield tmp_path / "costs"
    saved.saved_costs.cache_clear()


def read(tiles=AMPERE, gpu=GPU, sms=SMS):
    return saved.saved_costs(gpu, sms, tiles)


def changed(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def the_only_warning(caught):
    (warning,) = caught
    return str(warning.message)


def test_what_was_saved_is_read(folder):
    path = saved.save(GPU, SMS, AMPERE, COSTS)
    assert path == folder / "costs-nvidia-a100-sxm4-40gb.json"
    assert [file.name for file in folder.iterdir()] == [path.name]
    found = read()
    assert found.path == str(path)
    assert found.by_precision() == COSTS
    assert found.cost(HALF, AMPERE[1]) == COST
    assert found.cost(TF32, AMPERE[1]) is None
    assert found.covers("sm80", HALF)
    assert not found.covers("sm80", TF32)
    assert not found.covers("sm90", HALF)
    hash(found)  # a request with it is looked up


def test_there_is_no_warning_where_nothing_was_saved():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read() is None


def test_what_is_saved_later_stands_beside_what_was_there():
    saved.save("NVIDIA H200", 132, HOPPER, {HALF: {t: COST for t in HOPPER if t.m == 0}})
    nine = {tile: COST for tile in HOPPER if tile.architecture == "sm90"}
    newer = COST._replace(k_tile_us=0.5)
    saved.save("NVIDIA H200", 132, HOPPER, {HALF: {**nine, CUBLAS: COST}})
    saved.save("NVIDIA H200", 132, HOPPER, {HALF: {**dict.fromkeys(AMPERE, COST), CUBLAS: newer}})
    saved.save("NVIDIA H200", 132, HOPPER, {TF32: {**dict.fromkeys(AMPERE, newer), CUBLAS: COST}})
    found = read(HOPPER, "NVIDIA H200", 132).by_precision()
    assert found[HALF] == {**nine, **dict.fromkeys(AMPERE, COST), CUBLAS: newer}
    assert found[TF32] == {**dict.fromkeys(AMPERE, newer), CUBLAS: COST}


@pytest.mark.parametrize(
    ("break_", "sentence"),
    [
        (lambda path: path.write_text("{"), "it is broken (JSONDecodeError"),
        (lambda path: path.write_text("[]"), "it is broken (TypeError"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is broken (UnicodeDecodeError"),
        (lambda path: path.write_text('{"version": 1}'), "it is broken (KeyError: 'gpu')"),
        (lambda path: changed(path, version=2), "its version is 2, and this release reads 1"),
        (lambda path: changed(path, gpu="NVIDIA L4"), "it is of NVIDIA L4 with 108 SMs, and this"),
        (lambda path: changed(path, sms=98), "with 98 SMs, and this is NVIDIA A100-SXM4-40GB with"),
        (lambda path: changed(path, costs=[]), "it is broken (AttributeError"),
        (lambda path: changed(path, costs={"fp8": []}), "it is broken (costs in 'fp8')"),
        (
            lambda path: changed(path, costs={HALF: [{"name": CUBLAS, **COST._asdict()} | {
                "k_tile_us": 0.0}]}),
            "it is broken (costs of (4.0, 1.5, 0.0) us)",
        ),
        (
            lambda path: changed(path, costs={HALF: [{**AMPERE[0]._asdict(), **COST._asdict()}]}),
            "it is broken (no costs of cuBLAS)",
        ),
        (
            lambda path: changed(
                path,
                costs={
                    HALF: [
                        {"name": CUBLAS, **COST._asdict()},
                        {**AMPERE[0]._asdict(), **COST._asdict()},
                    ]
                },
            ),
            "its tiles of sm80 are not those of this build: run `sparsedrop bench --tune --save`",
        ),
    ],
)  # fmt: skip
def test_what_is_not_for_this_gpu_is_ignored_with_one_warning(break_, sentence):
    path = saved.save(GPU, SMS, AMPERE, COSTS)
    break_(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read() is None
        assert read() is None  # it is looked at once
    message = the_only_warning(caught)
    assert message.startswith(f"{path} is ignored: ")
    assert sentence in message


def test_what_other_tiles_were_measured_with_is_replaced():
    saved.save(GPU, SMS, AMPERE[:1], {HALF: {AMPERE[0]: COST, CUBLAS: COST}})
    saved.save(GPU, SMS, AMPERE, COSTS)
    assert read().by_precision() == COSTS


def test_a_file_that_cannot_be_read_is_ignored_with_one_warning(folder, monkeypatch):
    saved.save(GPU, SMS, AMPERE, COSTS)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: (_ for _ in ()).throw(OSError("no")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read() is None
    assert the_only_warning(caught).endswith(".json is ignored: no")


def test_the_folder_is_where_the_platform_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv(saved.VARIABLE, "~/own")
    assert saved.folder() == tmp_path / "home" / "own"
    monkeypatch.delenv(saved.VARIABLE)
    assert saved.folder() == tmp_path / "xdg" / "sparsedrop"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert saved.folder() == tmp_path / "home" / ".cache" / "sparsedrop"


def test_a_gpu_is_described_with_what_was_saved_for_it(monkeypatch):
    monkeypatch.setattr(_native, "C", extension_stub.C)
    monkeypatch.setattr(_native, "capability", lambda index: (8, 0))
    properties = SimpleNamespace(name=GPU, multi_processor_count=SMS, clock_rate=1_410_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    path = saved.save(GPU, SMS, AMPERE, COSTS)
    facts = kernels.gpu_facts.__wrapped__(0)
    assert (facts["gpu"], facts["sms"], facts["tiles"]) == (GPU, SMS, AMPERE)
    assert facts["speed"].clock_ghz == pytest.approx(1.41)
    assert facts["saved"].path == str(path)
    request = select.Request("cuda", torch.bfloat16, 4096, 4096, 4096, (128, 128), **facts)
    assert select.choose(request).path == "kernel"


def test_the_selection_goes_by_what_was_saved(monkeypatch):
    monkeypatch.setattr(_native, "C", extension_stub.C)
    saved.save(GPU, SMS, AMPERE, COSTS)
    request = BIG._replace(gpu=GPU, sms=SMS, capability=(8, 0), tiles=AMPERE, saved=read())
    choice = select.choose(request)
    assert choice.path == "kernel"
    assert choice.reason.endswith(f"by costs from {saved.path_for(GPU)}")
    assert select.sources(request) == (("sm80", f"from {saved.path_for(GPU)}"),)
