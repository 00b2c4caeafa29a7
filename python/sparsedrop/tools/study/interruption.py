"""A wish to stop: by a signal, or when the time is over."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Told by a first Ctrl-C or SIGTERM, so that a step can be finished and saved.

    Args:
        end: when the time is over, in seconds of `time.time`.
    """

    def __init__(self, end: float) -> None:
        self.end = end
        self.is_told = False
        self._heard: list[Callable[[], object]] = []

    def is_over(self) -> bool:
        """Whether no further step should be taken."""
        return self.is_told or time.time() > self.end

    def then(self, call: Callable[[], object]) -> None:
        """Calls that as soon as a signal comes."""
        self._heard.append(call)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears the signals inside; a second Ctrl-C ends the program as it would without."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are for that one
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.is_told:
            raise KeyboardInterrupt
        self.is_told = True
        for call in self._heard:
            call()
