"""What any run of `sparsedrop bench` hands over, to be printed, saved and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

STOPPED = "stopped by Ctrl-C: the rest was not measured"


class Line(NamedTuple):
    """One quantity over p: a "figure", the "bound" of the figure before it, or an "ideal"."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]  # p, speed-up


class Panel(NamedTuple):
    """One diagram of the picture."""

    title: str
    lines: Sequence[Line]


class Report(NamedTuple):
    """What a run found, in every form."""

    text: str  # the tables
    sentences: list[str]
    notes: list[str]  # what could not be measured
    results: dict[str, Any]  # JSON values
    panels: list[Panel]
    y_label: str


@contextmanager
def kept_when_stopped(rows: Sequence[Any], notes: list[str]) -> Iterator[None]:
    """Ctrl-C ends what is within, and the rows that are done are reported, with a note."""
    try:
        yield
    except KeyboardInterrupt:
        if not rows:
            raise
        notes.append(STOPPED)
