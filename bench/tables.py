"""Writes the tables of README and bench/README from the files in bench/results.

    python bench/tables.py

A page has a table between `<!-- table: NAME -->` and `<!-- end -->`. tests/test_pages.py fails
where a table is not what its files say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import study_tables
from rows import ROOT, Row, markdown, read, shape_of

PAGES = ("README.md", "bench/README.md")
PLACE = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

NETWORKS = {
    "mlp": "MLP 784-1024-1024-10, batch 1024",
    "vit": "ViT, 2 layers, d 1024, 64×256 tokens",
    "gpt": "GPT, 4 layers, d 1024, 64×128 tokens",
}
MODES = {
    "eager": "eager",
    "graph": "CUDA graph",
    "compile": "torch.compile",
    "reduce-overhead": "reduce-overhead",
}
PRODUCTS = ("forward", "dX", "dW")


def _rows_by_shape(rows: list[Row]) -> dict[str, list[Row]]:
    return {row["shape"]: [r for r in rows if r["shape"] == row["shape"]] for row in rows}


def summary() -> str:
    """README's: how much faster than nn.Dropout, in eager mode and captured."""
    lines = []
    layers = {row["shape"]: row["layers"] for row in read("h200_step") if row["p"] == 0.5}
    for shape in ("8192x8192x8192", "16384x4096x1024", "2048x2048x2048", "1024x1024x1024"):
        eager, graph = (_of_layer(layers[shape], key) for key in ("wall_ms", "gpu_ms"))
        lines.append([f"linear layer, {shape_of(shape)}", eager, graph, "–", "–", "H200"])
    rows = read("h200_network")
    speedups = {(row["network"], row["mode"]): row["speedups"]["sparsedrop"] for row in rows}
    for network, name in NETWORKS.items():
        modes = (f"{speedups[network, mode]:.2f}" for mode in MODES)
        lines.append([name, *modes, "H200"])
    (cpu,) = read("cpu_step")
    eager = _of_layer(cpu["layers"], "wall_ms")
    name = f"linear layer, {shape_of(cpu['shape'])}, float32"
    lines.append([name, eager, "–", "–", "–", "2 CPU cores"])
    head = ["times the speed of nn.Dropout, p = 0.5", *MODES.values(), "on"]
    return markdown(head, lines)


def _of_layer(layers: Row, key: str) -> str:
    return f"{layers['Dropout + Linear'][key] / layers['SparseDropLinear'][key]:.2f}"


def products() -> str:
    head = ["M×N×K", "µs at p = 0.5 (× dense): forward", "dX", "dW"]
    head += ["of shrunk, p = 0.1 to 0.7: forward", "dX", "dW"]
    lines = []
    rows = [row for row in read("h200_products") if row["dtype"] == "bfloat16"]
    for shape, group in _rows_by_shape(rows).items():
        at_half = {row["product"]: row for row in group if row["p"] == 0.5}
        times = [f"{at_half[p]['ours_us']:.0f} ({at_half[p]['times_dense']:.2f})" for p in PRODUCTS]
        shares = [[row["of_shrunk"] for row in group if row["product"] == p] for p in PRODUCTS]
        spans = [f"{min(each):.2f}–{max(each):.2f}" for each in shares]
        lines.append([shape_of(shape), *times, *spans])
    return markdown(head, lines)


def small_layers() -> str:
    head = ["M×N×K", "µs at p = 0.5 (× dense, of shrunk): forward", "dX", "dW"]
    rows = [row for row in read("h200_small_layers") if row["p"] == 0.5]
    lines = [
        [shape_of(shape)]
        + [f"{r['ours_us']:.0f} ({r['times_dense']:.2f}, {r['of_shrunk']:.2f})" for r in group]
        for shape, group in _rows_by_shape(rows).items()
    ]
    return markdown(head, lines)


def both_sides() -> str:
    blocks = ("128x128", "128x256")
    head = ["M×N×K"] + [f"{p} {shape_of(block)}" for p in PRODUCTS for block in blocks]
    rows = [row for row in read("h200_both") if row["p"] == 0.5]
    lines = []
    for shape, group in _rows_by_shape(rows).items():
        found = {(row["product"], row["out_block"]): row["times_dense"] for row in group}
        names = ("both", "both-dX", "both-dW")
        times = [f"{found[name, block]:.2f}" for name in names for block in blocks]
        lines.append([shape_of(shape), *times])
    return markdown(head, lines)


def steps() -> str:
    names = ("Dropout + Linear", "SparseDropLinear")
    head = ["M×N×K"]
    for name in names:
        head += [f"{name}: wall ms", "GPU ms", "peak MB"]
    head += ["speed-up: wall", "GPU"]
    lines = []
    for row in read("h200_step"):
        if row["p"] == 0.5:
            figures = []
            for name in names:
                of = row["layers"][name]
                figures += [f"{of['wall_ms']:.3f}", f"{of['gpu_ms']:.3f}", f"{of['peak_mb']:.0f}"]
            speedups = [_of_layer(row["layers"], key) for key in ("wall_ms", "gpu_ms")]
            lines.append([shape_of(row["shape"]), *figures, *speedups])
    return markdown(head, lines)


def compiled_steps() -> str:
    names = ("Dropout + Linear", "SparseDropLinear")
    head = ["M×N×K, wall (GPU) ms"]
    head += [f"{name}, {mode}" for name in names for mode in ("eager", "compiled")]
    lines = []
    for row in read("h200_step_compiled"):
        layers = [row["layers"][name + end] for name in names for end in ("", " compiled")]
        figures = [f"{layer['wall_ms']:.3f} ({layer['gpu_ms']:.3f})" for layer in layers]
        lines.append([shape_of(row["shape"]), *figures])
    return markdown(head, lines)


def networks() -> str:
    kinds = ("no dropout", "nn.Dropout", "sparsedrop")
    head = ["network", "mode", *(f"{kind} ms" for kind in kinds), "× nn.Dropout"]
    head += [f"peak MB, {kind}" for kind in kinds[1:]]
    lines = []
    for row in read("h200_network"):
        figures = [f"{row['figures'][kind]['wall_ms']:.3f}" for kind in kinds]
        peaks = [_peak(row, kind) for kind in kinds[1:]]
        network, mode = NETWORKS[row["network"]], MODES[row["mode"]]
        lines.append([network, mode, *figures, f"{row['speedups']['sparsedrop']:.2f}", *peaks])
    return markdown(head, lines)


PIECES = {
    "ffn": "feed-forward 1024-4096-1024, 8192 tokens",
    "ffn-wide": "feed-forward 4096-16384-4096, 16384 tokens",
    "stack": "four layers of 4096, ReLU, 8192 tokens",
    "layers": "twelve layers of 1024, 2048 rows",
    "lstm": "LSTM, 2 layers of 1500",
    "ard-mlp": "MLP 784-2048-2048-10, batch 2048",
    "ard-mlp-wide": "MLP 784-8192-8192-10, batch 2048",
    "linear": "linear layer 4096-4096, 8192 rows",
    "wide-resnet-28-10": "WideResNet-28-10, batch 128",
}


PLAIN = {
    "layers": ("SliceOut", "row pattern"),
    "linear": ("SliceOut", "row pattern"),
    "lstm": ("SliceOut",),
}
"""Kinds that leave nn.Dropout where it is in a network, so that nothing is compared."""


def pieces() -> str:
    rows = [*read("h200_feed_forward"), *read("h200_stack")]
    return _by_method(rows, ("sparsedrop",))


def units() -> str:
    """Whole units: of slices, of patterns, and tiles of patterns."""
    names = ("h200_feed_forward_units", "h200_ard_mlp")
    rows = [row for name in names for row in read(name)]
    rows += [row for row in read("h200_units") if row["network"] in ("lstm", "linear")]
    rows += read("h200_wide_resnet")
    return _by_method(rows, ("SliceOut", "row pattern", "tile pattern"))


def _by_method(rows: list[Row], kinds: Sequence[str]) -> str:
    head = ["network", "p", "mode", "nn.Dropout ms", *(f"{kind}, × nn.Dropout" for kind in kinds)]
    head += [f"peak MB, {kind}" for kind in ("nn.Dropout", *kinds)]
    lines = []
    for row in rows:
        speedups, figures = row["speedups"], row["figures"]
        own = [kind for kind in speedups if kind not in PLAIN.get(row["network"], ())]
        times = [f"{speedups[kind]:.2f}" if kind in own else "–" for kind in kinds]
        peaks = [
            _peak(row, k) if k in ("nn.Dropout", *own) else "–" for k in ("nn.Dropout", *kinds)
        ]
        of = [PIECES[row["network"]], f"{row['p']:g}", MODES[row["mode"]]]
        lines.append([*of, f"{figures['nn.Dropout']['wall_ms']:.3f}", *times, *peaks])
    return markdown(head, lines)


def stock() -> str:
    """The kernels of sm80 beside stock CUTLASS: the share of its rate on the live extent."""
    head = ["M×N×K", "dtype", "p", "forward", "dX", "dW"]
    found: dict[tuple[str, str, float], Row] = {}
    for row in read("h200_stock_sm80"):
        key = row["shape"], row["dtype"], row["p"]
        found.setdefault(key, {})[row["product"]] = f"{row['of_stock_on_shrunk']:.2f}"
    lines = [
        [shape_of(shape), dtype, f"{p:g}", *(each.get(product, "–") for product in PRODUCTS)]
        for (shape, dtype, p), each in found.items()
    ]
    return markdown(head, lines)


def _peak(row: Row, kind: str) -> str:
    """What a graph holds in its own pool is not seen."""
    is_seen = row["mode"] in ("eager", "compile")
    return f"{row['figures'][kind]['peak_mb']:.0f}" if is_seen else "–"


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "products": products,
    "small-layers": small_layers,
    "both-sides": both_sides,
    "steps": steps,
    "compiled-steps": compiled_steps,
    "networks": networks,
    "pieces": pieces,
    "units": units,
    "stock": stock,
    "study": study_tables.digits,
    "study-gpt": study_tables.gpt,
    "study-mlp": study_tables.mlp,
    "study-ard-mlp": study_tables.ard_mlp,
    "study-vit": study_tables.vit,
    "study-wide-resnet": study_tables.wide_resnet,
}


def filled(page: str) -> str:
    """The page with its tables as their files have them."""
    return PLACE.sub(lambda found: found[1] + "\n" + TABLES[found[2]]() + "\n" + found[3], page)


def main() -> None:
    for name in PAGES:
        path = ROOT / name
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
