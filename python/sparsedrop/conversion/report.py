"""What a conversion did: one entry a dropout."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A site: one place where a tensor is dropped.

    Attributes:
        name: of the linear layer in the original model, "" being the model itself; of a block the
            innermost module that owns it; of a dropout that is a function the module that calls it;
            of a dropout without a linear layer its own.
        kind: "input", "output", "mlp", "gated", "conv"; of what stays also "dropout", "functional",
            "attention" and "recurrent".
        expected_speedup: of the layers of the site over them with nn.Dropout, forward and backward,
            by the model of `sparsedrop.select`; None where nothing could be converted.
        reason: why it stays; None where it was converted.
    """

    name: str
    kind: str
    expected_speedup: float | None = None
    reason: str | None = None


class Report(NamedTuple):
    """What `convert` did with each dropout that it saw; printed, it is a table.

    Attributes:
        converted: entries in the order of the forward pass.
        skipped: likewise, behind those of what was converted before.
        model_name: class of the model, by which the table calls the root.
    """

    converted: tuple[Entry, ...]
    skipped: tuple[Entry, ...]
    model_name: str = "model"

    def __str__(self) -> str:
        entries = (*self.converted, *self.skipped)
        rows = [("layer", "kind", "expected", "")]
        rows += [self._row(entry) for entry in entries]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        ]
        count = len(self.converted)
        places = "place" if len(entries) == 1 else "places"
        summary = f"{count} of {len(entries)} {places} where {self.model_name} drops: converted"
        return "\n".join([*(line.rstrip() for line in lines), summary])

    def _row(self, entry: Entry) -> tuple[str, str, str, str]:
        speedup = entry.expected_speedup
        expected = "-" if speedup is None else f"{speedup:.2f}x"
        outcome = "converted" if entry.reason is None else f"skipped: {entry.reason}"
        return entry.name or self.model_name, entry.kind, expected, outcome
