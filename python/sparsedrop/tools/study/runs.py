"""The runs of a study, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

from sparsedrop.tools.study.checkpoint import Store
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.evaluation import Record, Result
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.train import Run

Results = dict[Method, list[Result]]
"""The finished runs of each method that has any, by seed."""

SAVE_SECONDS = 20.0
"""Between two saves of a heavy run; others are saved at each stop."""


def run_all(data: Dataset, settings: Settings, store: Store, is_over: Callable[[], bool]) -> None:
    """Trains every method once per seed, with a progress bar, and saves each run as it goes.

    Runs go on from their files. As soon as `is_over` says so, the rest is left.
    """
    runs = list(settings.runs())
    with tqdm(total=len(runs) * settings.steps, unit="step") as bar:
        for i, (method, seed) in enumerate(runs):
            if is_over():
                return
            bar.set_description(f"seed {seed}, {method.label}", refresh=False)
            train(method, seed, data, settings, store, is_over, bar)
            if not is_over():  # a run may have ended early
                bar.update((i + 1) * settings.steps - bar.n)


def train(
    method: Method,
    seed: int,
    data: Dataset,
    settings: Settings,
    store: Store,
    is_over: Callable[[], bool],
    bar: tqdm | None = None,
) -> None:
    """Trains one run from its file to its end, or until `is_over` says so after it was saved."""
    state = store.load(method, seed)
    run = None
    if state is None or not state["is_done"]:
        run = Run(method, data, settings, seed)
    if bar is not None and state is not None:
        known = settings.steps if state["is_done"] else state["step"]
        bar.initial += known  # these steps are no measure of speed
        bar.update(known)
    if run is None:
        return
    if state is not None:
        run.load_state(state)
    saved = time.monotonic()
    for stop in settings.stops():
        if run.step < stop:
            run.advance(stop, (lambda: None) if bar is None else bar.update, is_over)
            is_last = run.is_done or is_over()
            if is_last or not run.is_heavy or time.monotonic() - saved > SAVE_SECONDS:
                store.save(run)
                saved = time.monotonic()
            if is_last:
                return


def finished(settings: Settings, store: Store) -> Results:
    """What the files of finished runs hold."""
    results: Results = {}
    for method, seed in settings.runs():
        state = store.load(method, seed)
        if state is not None and state["is_done"]:
            records = [Record(*values) for values in state["records"]]
            results.setdefault(method, []).append(Result(seed, records))
    return {method: results[method] for method in settings.methods if method in results}
