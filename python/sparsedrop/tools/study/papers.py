"""What the papers report of these tasks, to stand beside what a study finds."""

from __future__ import annotations

from typing import NamedTuple

from sparsedrop.tools.study.method import PATTERNED, Method
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.tasks import TASKS


class Speed(NamedTuple):
    """A paper's speed-up, and the rates that it is of."""

    text: str
    least: float
    most: float


class Figure(NamedTuple):
    """What a method reached at its best rate, on validation data."""

    p: float
    accuracy: float | None  # percent
    loss: float

    def text(self) -> str:
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.2f} %, "
        rate = f" (p = {self.p:g})" if self.p else ""
        return f"{accuracy}{self.loss:.3f}{rate}"


# Lo 2024 (arXiv:2411.01238), by task and data.
FIGURES: dict[tuple[str, str], dict[str, Figure]] = {
    ("mlp", "mnist"): {
        "none": Figure(0.0, 96.96, 0.166),
        "dropout": Figure(0.5, 97.82, 0.080),
        "sparsedrop": Figure(0.3, 97.61, 0.092),
    },
    ("vit", "fashion-mnist"): {
        "none": Figure(0.0, 85.69, 0.419),
        "dropout": Figure(0.5, 86.84, 0.396),
        "sparsedrop": Figure(0.2, 87.04, 0.382),
    },
    ("vit", "cifar-10"): {
        "none": Figure(0.0, 48.71, 1.669),
        "dropout": Figure(0.4, 53.05, 1.524),
        "sparsedrop": Figure(0.4, 56.79, 1.264),
    },
    ("gpt", "tinyshakespeare.txt"): {
        "none": Figure(0.0, None, 1.643),
        "dropout": Figure(0.6, None, 1.448),
        "sparsedrop": Figure(0.5, None, 1.430),
    },
}

# nn.Dropout's time of a step over that of SparseDrop at p = 0.5 on an RTX 2060 Max-Q (203 ms over
# 168, 218 over 157), and of patterns at rates from 0.3 to 0.7 (Song et al., arXiv:2203.05705).
SPEEDS = {
    ("vit", "sparsedrop"): Speed("1.21", 0.5, 0.5),
    ("gpt", "sparsedrop"): Speed("1.39", 0.5, 0.5),
    **{("ard-mlp", word): Speed("1.18–2.16", 0.3, 0.7) for word in PATTERNED},
    **{("lstm", word): Speed("1.24–1.85", 0.3, 0.7) for word in PATTERNED},
}


def has_its_size(settings: Settings) -> bool:
    """Whether the network is as large as the paper's, so that figures can stand side by side."""
    preset, paper = settings.preset, TASKS[settings.task].paper
    return (preset.width, preset.layers) == (paper.width, paper.layers)


def figures(settings: Settings) -> dict[str, Figure]:
    """By the words of methods; empty where the paper has none of this data and size."""
    return FIGURES.get((settings.task, settings.data), {}) if has_its_size(settings) else {}


def speed(settings: Settings, method: Method) -> str | None:
    """How many times nn.Dropout's speed; None where the paper has none."""
    found = SPEEDS.get((settings.task, method.word)) if has_its_size(settings) else None
    return None if found is None or not found.least <= method.p <= found.most else found.text
