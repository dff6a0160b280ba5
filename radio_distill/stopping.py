"""Signals, and launchers that died, → one question that the loop asks between steps: shall we stop?

SIGTERM or SIGINT finish the step and save; a second one stops at once. A SIGTERM to the `deepspeed` launcher kills the
launcher alone and orphans its ranks, so every rank also watches the launchers among its ancestors.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import psutil

LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed.run", "torch/distributed/run")
LOOK_EVERY = 1.0  # seconds between looks at the process table


class Stopper:
    """Use as a context: inside it signals are remembered instead of obeyed."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._launchers = _launchers()
        self._looked = time.monotonic()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stopper:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = self.reason or signal.Signals(number).name

    def asked(self) -> bool:
        """Whether this rank has been asked to stop."""
        if self.reason is None and time.monotonic() - self._looked > LOOK_EVERY:
            self._looked = time.monotonic()
            if not all(_alive(process) for process in self._launchers):
                self.reason = "its launcher is gone"
        return self.reason is not None


def _launchers() -> list[psutil.Process]:
    """The processes above this one that started it as a rank."""
    found = []
    if "WORLD_SIZE" not in os.environ:
        return found
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        # The program or module that runs, not the arguments of a shell that merely mentions it.
        if any(name in word for word in words[:4] for name in LAUNCHERS) and not words[0].endswith("sh"):
            found.append(process)
    return found


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
