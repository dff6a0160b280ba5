"""Signals, and launchers that died, → one question that the loop asks between steps: shall we stop?

SIGTERM or SIGINT finish the step and save; a second SIGINT, unless it follows at once, ends the process (what started
us may pass on the one that the terminal has sent to everybody: that is still the first). A SIGTERM to the `deepspeed`
launcher kills the launcher alone and orphans its ranks, so every rank also watches the launchers among its ancestors.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import psutil

LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed.run", "torch/distributed/run")
LOOK_EVERY = 1.0  # seconds between looks at the process table
ECHO = 3.0  # seconds in which a second SIGINT is the first one, passed on


class Stopper:
    """Use as a context: inside it signals are remembered instead of obeyed.

    Make it early: launchers are looked for only once, and one that has died since would not be found.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._asked_at = 0.0
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
        if self.reason is None:
            self.reason, self._asked_at = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > ECHO:
            raise KeyboardInterrupt

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
