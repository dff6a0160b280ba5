"""An experiment, arms × seeds over one recipe → runs that are trained and measured, each of them once.

The same command may be started several times at once: every process takes the next run that nobody has done or is
doing. A process that was killed costs what its run had learnt since the last checkpoint; the same command goes on.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import radio_distill
from eval.scores import MetricScore
from radio_distill import journal, run_folder
from radio_distill.recipe import Recipe, load_recipe
from teachers.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
MEASURED = "measured.json"
TRIES, PATIENCE = 2, 5.0  # of a run that fails; seconds between looks at one that another process trains


@dataclass(frozen=True)
class Arm:
    """One thing that is tried: the recipe with some keys changed."""

    name: str
    title: str  # in tables and pictures
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One arm with one seed."""

    arm: Arm
    seed: int
    recipe: Recipe
    command: tuple[str, ...]  # what train.py is given

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def label(self) -> str:
        return f"{self.arm.name} seed {self.seed}"


@dataclass(frozen=True)
class Measured:
    """What is known of a finished run."""

    arm: str
    seed: int
    commit: str
    metrics: dict[str, MetricScore]
    training: dict[str, float]  # steps; milliseconds a step and minutes, as its journal has them


def command_line(about: str, arms: Mapping[str, Arm], out: str) -> argparse.ArgumentParser:
    """What both experiments can be told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, in every arm")
    parser.add_argument("--recipe", default="recipes/tabletop_ablation.yaml")
    parser.add_argument("--only", nargs="+", choices=arms, default=list(arms), metavar="ARM", help=", ".join(arms))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder of the runs [{out}]")
    parser.add_argument("--report", type=Path, help="folder of the report [that of the runs]")
    parser.add_argument("--report-only", action="store_true", help="of what is measured so far; train nothing")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def shown(name: str, arguments: Sequence[str]) -> str:
    """The command that a report says it is of: the one that trains."""
    return shlex.join(["python", f"benchmarks/{name}.py", *(word for word in arguments if word != "--report-only")])


def trials(options: argparse.Namespace, arms: Mapping[str, Arm], common: Sequence[str] = ()) -> list[Trial]:
    """Every run that was asked for, seed by seed; the user's own overrides come last and win."""
    loaded = Path(radio_distill.__file__).resolve().parents[1]
    if loaded != ROOT:
        raise UserError(
            f"this script stands in {ROOT}, but its packages come from {loaded}", todo=f"export PYTHONPATH={ROOT}"
        )
    found = []
    for seed in options.seeds:
        for arm in (arms[name] for name in options.only):
            run = options.out / f"{arm.name}-seed{seed}"
            overrides = [*common, *arm.overrides, *options.overrides]
            overrides += [f"seed={seed}", f"run={run}", f"threads={options.threads}"]
            found.append(Trial(arm, seed, load_recipe(options.recipe, overrides), (options.recipe, *overrides)))
    return found


def run(
    options: argparse.Namespace,
    wanted: Sequence[Trial],
    key: str,
    opened: Callable[[Trial], Callable[[Trial], dict[str, MetricScore]]],
    report: Callable[[list[Measured]], None],
) -> int:
    """Do what is missing, then report all that is measured; the exit code. `opened` makes what measures a run."""
    failed = [] if options.report_only else train_all(options, wanted, opened(wanted[0]), key)
    measured = [found for trial in wanted if (found := read(trial, key)) is not None]
    if measured:
        report(measured)
        print(f"{len(measured)} of {len(wanted)} runs: report in {options.report or options.out}", flush=True)
    return 0 if measured and not failed else 1


def train_all(
    options: argparse.Namespace, wanted: Sequence[Trial], measure: Callable[[Trial], dict[str, MetricScore]], key: str
) -> list[str]:
    """Do what is missing; what failed, which is told."""
    import torch

    torch.set_num_threads(options.threads)
    before = signal.signal(signal.SIGTERM, _interrupt)  # or a trainer that was started here would be left alone
    try:
        failed = work(wanted, measure, key)
    finally:
        signal.signal(signal.SIGTERM, before)
    for label in failed:
        print(f"{label}: given up after {TRIES} tries", flush=True)
    return failed


def guarded(main: Callable[[], int]) -> int:
    """A command's exit code; a user's mistake is told without a traceback."""
    try:
        return main()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def work(wanted: Sequence[Trial], measure: Callable[[Trial], dict[str, MetricScore]], key: str) -> list[str]:
    """Train and measure all that is not done yet; returns what failed. `key` names how it is measured."""
    tries: Counter[str] = Counter()
    while pending := [t for t in wanted if read(t, key) is None and tries[t.label] < TRIES]:
        outcomes = [_attempt(trial, measure, key, tries) for trial in pending]
        if all(outcome == "elsewhere" for outcome in outcomes):
            break  # the other processes will report them
        if "done" not in outcomes:
            time.sleep(PATIENCE)
    return [label for label, count in tries.items() if count >= TRIES]


def _attempt(trial: Trial, measure: Callable[[Trial], dict[str, MetricScore]], key: str, tries: Counter[str]) -> str:
    """Do one run, unless it is done or being done: `done`, `failed`, `elsewhere` or `alone`."""
    with _held(trial.folder.with_name(f".{trial.folder.name}.lock")) as ours:
        if not ours:
            return "elsewhere"
        if read(trial, key) is not None:
            return "done"
        if _in_training(trial.folder):
            return "alone"
        if _do(trial, measure, key):
            return "done"
        tries[trial.label] += 1
        return "failed"


def _do(trial: Trial, measure: Callable[[Trial], dict[str, MetricScore]], key: str) -> bool:
    """Train one run to its end and measure it; False if it failed, which its log explains."""
    began = time.monotonic()
    if not run_folder.finished(trial.recipe) and train(trial) != 0:
        print(f"{trial.label}: FAILED; see {_log(trial)}", flush=True)
        return False
    trained = time.monotonic()
    metrics = measure(trial)
    facts = {"key": key, "arm": trial.arm.name, "seed": trial.seed, "overrides": list(trial.command[1:])}
    facts |= {"commit": _commit(trial.folder), "date": time.strftime("%Y-%m-%d %H:%M:%S")}
    facts |= {"training": training(trial.folder), "metrics": {name: m.model_dump() for name, m in metrics.items()}}
    run_folder.write_text(trial.folder / MEASURED, json.dumps(facts) + "\n")
    spent = f"trained in {trained - began:.0f} s, measured in {time.monotonic() - trained:.0f} s"
    print(f"{trial.label}: {spent}; " + ", ".join(f"{n} {m.value:.3g}" for n, m in metrics.items()), flush=True)
    return True


def train(trial: Trial) -> int:
    """The exit code of a trainer of its own; what it says goes into a log beside the run."""
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(trial.recipe.threads)}
    command = [sys.executable, str(ROOT / "radio_distill" / "train.py"), *trial.command]
    with open(_log(trial), "a") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            return child.wait()
        except BaseException:
            child.terminate()  # it saves, and the same command goes on
            child.wait()
            raise


def read(trial: Trial, key: str) -> Measured | None:
    """What was measured of a run, if it was, and in this way."""
    try:
        found = json.loads((trial.folder / MEASURED).read_text())
    except FileNotFoundError:
        return None
    if found["key"] != key or not run_folder.finished(trial.recipe):
        return None
    metrics = {name: MetricScore.model_validate(figure) for name, figure in found["metrics"].items()}
    return Measured(trial.arm.name, trial.seed, found["commit"], metrics, found["training"])


def training(run: Path) -> dict[str, float]:
    """Steps, the median of a step in milliseconds, and minutes of all steps, from a run's journal."""
    seconds = sorted(record["seconds"] for record in journal.read(run) if record["kind"] == "step")
    return {
        "steps": len(seconds), "ms_a_step": round(1000 * seconds[len(seconds) // 2], 1),
        "minutes": round(sum(seconds) / 60, 2),
    }  # fmt: skip


def _commit(run: Path) -> str:
    lines = (run / run_folder.ENVIRONMENT).read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)["commit"]


def _log(trial: Trial) -> Path:
    return trial.folder.with_name(f"{trial.folder.name}.log")


@contextmanager
def _held(path: Path):
    """Whether the lock at `path` is ours while the context lasts; a process that dies loses it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _in_training(run: Path) -> bool:
    """Whether a trainer holds the run folder: one whose own starter was killed goes on alone."""
    if not (run / run_folder.LOCK).exists():
        return False
    with _held(run / run_folder.LOCK) as ours:
        return not ours


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
