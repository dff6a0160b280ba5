"""Turns batch makers into one row of batches: made here, or ahead of time in a process for each maker."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from teachers.errors import UserError

AHEAD = 2  # batches that a process makes in advance
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class _Requests:
    """What the processes are asked for: (number, sizes) of every batch from `start` on; they are asked in turn."""

    def __init__(self, sizes: Callable[[int], Any], start: int):
        self._sizes, self._start = sizes, start

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return ((index, self._sizes(index)) for index in itertools.count(self._start))


class _Makers(Dataset):
    """Answers a request by the maker whose turn it is: number i belongs to maker i mod their count.

    The loader asks its processes in strict turn, so each process only ever wakes one maker, whichever batch number
    the stream resumed at. A user's mistake comes back as an answer: raised, it would arrive as a traceback.
    """

    def __init__(self, makers: Sequence[Any], stopping: Any):
        self.makers, self.stopping = makers, stopping

    def __getitem__(self, request: tuple[int, Any]) -> Any:
        index, sizes = request
        try:
            return self.makers[index % len(self.makers)].make(index, sizes)
        except UserError as error:
            return error


class Loader:
    """Batches `start`, `start + 1`, ... in order; an error ends it.

    Args:
        makers: have `make(index, sizes) -> answer`.
        workers: processes, one a maker; 0 makes every batch in this one.
        sizes: of batch number `index`; called here, so it need not reach another process.
    """

    def __init__(self, stream: str, makers: Sequence[Any], workers: int, sizes: Callable[[int], Any], start: int):
        self._stream, self._workers = stream, workers
        self._requests = _Requests(sizes, start)
        # Until told to stop, a process ignores SIGTERM: when a whole group is signalled, the trainer decides.
        self._stopping = _fork().Event() if workers else None
        self._makers = _Makers(makers, self._stopping)
        self._answers: Iterator[Any] | None = None
        if workers:
            weakref.finalize(self, self._stopping.set)  # also when Python exits without close()

    def __next__(self) -> Any:
        if self._answers is None:
            self._answers = self._in_processes() if self._workers else map(self._makers.__getitem__, self._requests)
        try:
            answer = next(self._answers)
        except (RuntimeError, OSError, EOFError) as error:
            if not self._workers or not _tells_of_a_death(error):
                raise
            self.close()
            raise UserError(
                f"stream '{self._stream}': a loader process died ({' '.join(str(error).split())})",
                expected="most often it is memory (or /dev/shm) that ran out",
                todo=f"lower streams.{self._stream}.shuffle or streams.{self._stream}.workers",
            ) from error
        if isinstance(answer, UserError):
            self.close()
            raise answer
        return answer

    def close(self) -> None:
        """End the processes."""
        if self._stopping is not None:
            self._stopping.set()
        # A kept traceback may hold the iterator, and the processes end with its last reference: so end them by name.
        getattr(self._answers, "_shutdown_workers", lambda: None)()
        self._answers, self._requests, self._makers = iter(()), iter(()), None

    def _in_processes(self) -> Iterator[Any]:
        loader = DataLoader(
            self._makers,
            batch_size=None,
            sampler=self._requests,
            num_workers=self._workers,
            multiprocessing_context=_fork(),
            prefetch_factor=AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_only_the_trainer_stops_us,
            generator=torch.Generator(),  # or DataLoader would draw from the global one
        )
        with _signals_held(), _own_sigchld():
            return iter(loader)


def _fork() -> Any:
    """Processes that inherit their makers; by default some systems and Python 3.14 would pickle them instead."""
    return torch.multiprocessing.get_context("fork")


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A process is born with these signals held back, until it has said below what they mean to it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _own_sigchld() -> Iterator[None]:
    """Keep torch from raising a process's death out of whatever the trainer is doing; `next` finds it in 5 s anyway."""
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


def _tells_of_a_death(error: Exception) -> bool:
    """Whether a process died (found by waiting, or while fetching its tensors) rather than raised ("Caught ...")."""
    lost = isinstance(error, (OSError, EOFError)) or "DataLoader worker" in str(error)
    return lost and not str(error).startswith("Caught")


def _as_it_is(answer: Any) -> Any:
    return answer


def _only_the_trainer_stops_us(_: int) -> None:
    """Ctrl-C and SIGTERM reach a whole group of processes; the trainer needs its loader to finish its step."""
    stopping, trainer = get_worker_info().dataset.stopping, os.getppid()

    def stop(*_: object) -> None:
        if stopping.is_set() or os.getppid() != trainer:
            for program in psutil.Process().children(recursive=True):  # of a pipe that hangs
                program.terminate()
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
