"""Stop requests: Ctrl-C and SIGTERM let a run save its checkpoint before it ends."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Within this context SIGINT and SIGTERM set a flag; a second one acts as it always does.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    signal: int | None = None

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread handle signals; elsewhere (a notebook's worker) the
        # caller stops the run.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._hear)
        return self

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
