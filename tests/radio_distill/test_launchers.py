"""`deepspeed`, `torchrun` and `python` start the same script on CPUs; where they are stopped, ranks save and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import PATIENCE, free_port, wait_until

from radio_distill import journal

BIN = Path(sys.executable).parent
ENDLESS = ["stages.0.steps=3000", "output.save=0", "heldout=null", "optim.warmup=0"]


class Launched:
    """A command in a session of its own, as in a terminal, and all the processes below it."""

    def __init__(self, command: list[str], log: Path, root: Path):
        alone = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of this process
        environment = {key: value for key, value in os.environ.items() if key not in alone}
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=root, env=environment, start_new_session=True
            )
        self.family: list[psutil.Process] = []

    def wait_for_step(self, run: Path, step: int) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return sum(record["kind"] == "step" for record in journal.read(run)) >= step

        wait_until(there, f"step {step}: {self.log.read_text()}")
        self.family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def wait_for_the_end(self) -> str:
        """What was said, once nobody is left."""
        self.process.wait(PATIENCE)
        wait_until(lambda: not any(_runs(process) for process in self.family), f"their end: {self.log.read_text()}")
        return self.log.read_text()

    def end(self) -> None:
        for process in self.family or [self.process]:
            if process.is_running() if isinstance(process, psutil.Process) else process.poll() is None:
                process.kill()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def launch(trial, tmp_path, request):
    def start(*command: str) -> Launched:
        script = ["radio_distill/train.py", str(trial.file), *ENDLESS]
        made = Launched([*command, *script], tmp_path / "launch.log", request.config.rootpath)
        request.addfinalizer(made.end)
        return made

    return start


def program(name: str) -> str:
    if not (BIN / name).exists():
        pytest.skip(f"there is no {name} beside {sys.executable}")
    return str(BIN / name)


def test_ranks_notice_that_the_deepspeed_launcher_was_terminated_and_save(trial, launch):
    options = ["--log_level", "error", "--num_gpus", "1", "--master_port", str(free_port())]
    launched = launch(program("deepspeed"), *options)
    launched.wait_for_step(trial.run, 2)
    assert len(launched.family) >= 3  # deepspeed, its own launcher, the rank
    launched.process.terminate()  # the launcher alone dies of it
    said = launched.wait_for_the_end()
    [step] = trial.checkpoints()
    assert f"stopped (its launcher is gone) and saved at step {step}; the same command goes on" in said
    assert step == trial.journal()[-1]["step"] and "Traceback" not in said


def test_ctrl_c_under_torchrun_lets_both_ranks_finish_their_step_and_save(trial, launch):
    launched = launch(program("torchrun"), "--nproc-per-node", "2", "--master-port", str(free_port()))
    launched.wait_for_step(trial.run, 2)
    os.killpg(launched.process.pid, signal.SIGINT)  # as a terminal does; torchrun passes it on to its ranks
    said = launched.wait_for_the_end()
    [step] = trial.checkpoints()
    assert "2 ranks on cpu" in said and f"stopped (SIGINT) and saved at step {step}; the same command goes on" in said
    assert step == trial.journal()[-1]["step"] and "KeyboardInterrupt" not in said


def test_plain_python_starts_the_script_by_its_path(trial, request):
    command = [sys.executable, "radio_distill/train.py", "--local_rank=0", str(trial.file), "optim.lrr=1"]
    done = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'lr'" in done.stderr and "Traceback" not in done.stderr
