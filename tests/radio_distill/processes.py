"""Training processes that tests may kill, forked from one server that has imported everything: each starts at once."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PRELOADED = ["radio_distill.distill", "radio_distill.loop", "radio_distill.dry_run.plan", "radio_distill.export",
             "timm.models.vision_transformer", "teachers.random_encoder", "deepspeed",
             "deepspeed.runtime.zero.muon.original_muon"]  # fmt: skip
PATIENCE = 300  # seconds until a process that should have done something is given up


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """`world` processes that run `train.py` together, as a launcher would start them; what they say goes into `log`.

    `first` is called with the rank in each of them before training starts.
    """

    def __init__(self, arguments: Sequence[str], world: int, log: Path, first: Callable[[int], None] | None = None):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log, port = log, free_port()
        self.processes = [
            context.Process(target=_rank, args=(list(arguments), rank, world, port, str(log), first))
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()
            atexit.register(process.kill)  # a test that failed half-way leaves nobody behind

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to every rank that runs."""
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def wait(self) -> list[int]:
        """Exit codes by rank, negative for a signal."""
        for process in self.processes:
            process.join(PATIENCE)
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.kill()
            raise AssertionError(f"a rank did not end in {PATIENCE} s: {codes}\n{self.said()}")
        return codes

    def said(self) -> str:
        """All that the ranks have printed so far."""
        return self.log.read_text() if self.log.exists() else ""


def wait_until(what: Callable[[], bool], why: str, ranks: Ranks | None = None) -> None:
    """Look until `what` is true, or until one of the ranks that should make it so has ended."""
    until = time.monotonic() + PATIENCE
    while not what():
        ended = ranks and [process.exitcode for process in ranks.processes if process.exitcode is not None]
        if ended or time.monotonic() > until:
            raise AssertionError(f"waited in vain for {why}; ended: {ended}\n{ranks.said() if ranks else ''}")
        time.sleep(0.005)


def hold(rank: int, step: int, on: int = 0) -> None:
    """Make rank `on` wait after `step` steps until it is asked to stop, or killed; the others then wait in mid-step."""
    from radio_distill import loop

    one_step = loop.Training.one_step

    def patiently(training, streams, stopper):
        while rank == on and training.step == step and not stopper.asked():
            time.sleep(0.005)
        return one_step(training, streams, stopper)

    loop.Training.one_step = patiently


def _rank(arguments: list[str], rank: int, world: int, port: int, log: str, first: Callable | None) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)

    from radio_distill import curves, train

    curves.draw = lambda run: None  # costs more than the training
    if first:
        first(rank)
    sys.exit(train.main(arguments))
