"""Signals and dead launchers → one question between steps: shall we stop?"""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace

import psutil
import pytest

from radio_distill import stopping
from radio_distill.stopping import Stopper


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_instead_of_obeyed_and_only_inside(number):
    before = signal.getsignal(number)
    stopper = Stopper()
    assert not stopper.asked()
    with stopper:
        os.kill(os.getpid(), number)
        assert stopper.asked() and stopper.reason == number.name
    assert signal.getsignal(number) is before


def test_a_ctrl_c_that_comes_twice_at_once_is_one_and_a_later_one_ends_the_process(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock.now)
    with Stopper() as stopper:
        os.kill(os.getpid(), signal.SIGINT)
        clock.now += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper.asked() and stopper.reason == "SIGINT"
        clock.now += stopping.ECHO
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_launcher_that_is_gone_is_noticed_also_as_a_zombie(monkeypatch, reaped):
    launcher = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(stopping, "_launchers", lambda: [psutil.Process(launcher.pid)])
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0)
    stopper = Stopper()
    assert not stopper.asked()
    launcher.kill()
    if reaped:
        launcher.wait()
    else:
        os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
    assert stopper.asked() and stopper.reason == "its launcher is gone"
    launcher.wait()


def test_the_process_table_is_not_looked_at_every_step(monkeypatch):
    looks = []
    monkeypatch.setattr(stopping, "_launchers", lambda: [None])
    monkeypatch.setattr(stopping, "_alive", lambda process: looks.append(process) or True)
    stopper = Stopper()
    for _ in range(1000):
        stopper.asked()
    assert len(looks) <= 2


def test_launchers_are_the_programs_above_a_rank_not_shells_that_mention_them(monkeypatch):
    rows = {
        "python": ["/v/bin/python", "/v/bin/deepspeed", "radio_distill/train.py", "recipes/quickstart.yaml"],
        "module": ["/v/bin/python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x", "train.py"],
        "torch": ["/v/bin/python", "/v/bin/torchrun", "--nproc-per-node", "2"],
        "run": ["/v/bin/python", "-m", "torch.distributed.run", "train.py"],
        "shell": ["bash", "-c", "deepspeed radio_distill/train.py recipes/quickstart.yaml"],
        "make": ["make", "quickstart"],
        "init": ["/sbin/init"],
    }
    parents = [SimpleNamespace(name=name, cmdline=lambda words=words: words) for name, words in rows.items()]
    monkeypatch.setattr(stopping.psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [process.name for process in stopping._launchers()] == ["python", "module", "torch", "run"]
    monkeypatch.delenv("WORLD_SIZE")
    assert stopping._launchers() == []  # plain python: whoever started it may end
