"""A recipe and an objective → a finished run: the only training loop, whatever is trained.

One optimiser step takes a batch, or several, from every stream of its stage. All randomness of a step is seeded from
(seed, step, stream, rank), and every stream says after each batch where it stands: so weights, optimiser, what the
objective holds, a step number and those positions are the whole state, and a run that was killed goes on as if nothing
had happened, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radio_distill import checkpoint, curves
from radio_distill.console import Console
from radio_distill.engine import RankError, World, backward, choose_precision, optimizer_step, start_engine
from radio_distill.journal import Journal
from radio_distill.mirrors import open_mirrors
from radio_distill.objectives import Objective
from radio_distill.optimisers import freeze
from radio_distill.recipe import Recipe, StreamConfig
from radio_distill.run_folder import EXPORT, check_there
from radio_distill.schedule import learning_rate
from radio_distill.shards import ShardStream, read_all
from radio_distill.stopping import Stopper
from radio_distill.views import Batch
from radio_distill.visits import sources_of
from teachers.errors import UserError
from teachers.seeding import seed_of, torch_rng

PICTURED = 4  # images a PCA picture


class Training:
    """One run on one rank: the state that the loop carries, and its few verbs."""

    def __init__(self, recipe: Recipe, objective: Objective, world: World, loud: bool = True):
        self.recipe, self.objective, self.world, self.run = recipe, objective, world, recipe.folder
        self.started_from, notices = self.find_checkpoint()
        self.step = self.samples = 0  # samples: of all ranks
        self.positions: dict[str, Any] = {}  # this rank's, by stream, after the last batch taken
        self._left: dict[str, list[Any]] = {}  # every rank's, by stream, where a stage or another process left it
        self._stage: int | None = None  # the last one begun
        precision, why = choose_precision(recipe.precision, world.device)
        groups = objective.param_groups(recipe.optim.lr, recipe.optim.weight_decay)
        self.engine = self.start_engine(groups, precision)
        if self.started_from:
            facts, tensors = checkpoint.load(self.started_from, self.engine, world)
            objective.load_state(tensors)
            self.step, self.samples = facts["step"], facts["samples"]
            self._left = facts["positions"]
        self.console = Console(loud and world.first, recipe.steps, self.step)
        for notice in notices:
            self.console.say(notice)
        self.console.say(self._first_line(precision, why))

    def find_checkpoint(self) -> tuple[Path | None, list[str]]:
        """Where to go on from, as the first rank finds it, and what to tell of damaged ones; a rehearsal: nowhere."""
        found: tuple[Path | None, list[str]] = (None, [])
        error = None
        if self.world.first:
            try:
                found = checkpoint.newest_sound(self.run)
                checkpoint.set_aside_after(found[0], self.run)
            except UserError as met:
                error = met
        self.world.agree(error)
        return self.world.gather(found)[0]

    def _first_line(self, precision: str, why: str) -> str:
        ranks = f"{self.world.size} rank{'s' if self.world.size > 1 else ''} on {self.world.device.type}"
        if self.started_from:
            begin = f"resuming at step {self.step}, sample {self.samples} ({self.started_from})"
        else:
            begin = "starting from scratch (no checkpoint there yet)"
        return f"run {self.run}: {begin}; {ranks}; {precision}: {why}"

    def start_engine(self, groups: list[dict], precision: str) -> Any:
        """What runs, reduces and steps the objective's model; a rehearsal has another."""
        return start_engine(self.recipe, self.objective.model, groups, precision, self.world)

    # Data ---------------------------------------------------------------------------------------------------------

    def stream(self, name: str, *, resume: bool, seed: int) -> ShardStream:
        """Endless batches of one stream, from its start or from where it was left."""
        stream = ShardStream(
            self.recipe.streams[name],
            name=name,
            seed=seed,
            sizes=lambda index: self.objective.sizes(name, index),
            rank=self.world.rank,
            world=self.world.size,
            position=self._left.get(name) if resume else None,
        )
        if stream.notice:
            self.console.say(stream.notice)
        return stream

    def streams(self, opened: dict[str, ShardStream]) -> dict[str, ShardStream]:
        """The streams of the present stage: those of `opened` that it goes on with, others closed, new ones opened."""
        wanted = self.recipe.streams_at(self.step)
        if opened.keys() == wanted.keys():
            return opened
        if opened:
            self._gather_positions()
        for name in opened.keys() - wanted.keys():
            opened[name].close()
        return {
            name: opened[name] if name in opened else self.stream(name, resume=True, seed=self.recipe.seed)
            for name in wanted
        }

    def _gather_positions(self) -> None:
        everybody = self.world.gather(self.positions)
        self._left |= {name: [positions[name] for positions in everybody] for name in self.positions}

    def heldout(self, limit: int | None = None) -> Iterator[Batch]:
        """The held-out pictures, once for every stream, at the sizes of that stream's first batch."""
        config = self.recipe.heldout
        for name in self.recipe.streams if config else ():
            sizes = self.objective.sizes(name, 0)
            box = self.recipe.streams[name].letterbox
            for batch in read_all(config.shards, limit or config.samples, sizes, batch=config.batch, letterbox=box):
                batch.stream, batch.index = name, 0
                yield batch

    def begin_stage(self, stopper: Stopper) -> None:
        """Before a stage's first step: fit what the objective must know of its teachers."""
        number, inside = self.recipe.stage_at(self.step)
        if number == self._stage or inside:
            return  # a run resumed inside a stage has it from its checkpoint
        self._stage = number
        config, first = self.recipe.statistics, next(iter(self.recipe.streams_at(self.step)))
        stream = self.recipe.streams[first]
        crops = f"{stream.batch} {stream.scale} {stream.ratio} {stream.flip} {stream.min_side} {stream.letterbox}"
        note = f"{_data_note(stream)} {crops} seed {self.recipe.seed} ranks {self.world.size}"

        def batches() -> Iterator[Batch]:
            # A seed of its own: the statistics see other crops than the first steps do.
            with self.stream(first, resume=False, seed=seed_of("statistics", self.recipe.seed)) as batches:
                for _ in range(config.batches):
                    if stopper.asked():
                        raise RankError(f"stopped before the first step of stage {number}: {stopper.reason}")
                    yield _take(batches)

        facts = self.objective.begin_stage(number, batches, note)
        if facts:
            told = ", ".join(f"{key} {value:.4g}" for key, value in facts.items())
            self.console.say(f"teacher statistics: {told}")

    # One step -----------------------------------------------------------------------------------------------------

    def one_step(self, streams: Mapping[str, Iterator[Batch]], stopper: Stopper) -> tuple[dict[str, float], dict, bool]:
        """One optimiser step → (journal fields averaged over ranks, unreadable samples, whether anybody must stop)."""
        rate = learning_rate(self.recipe, self.step)
        groups = self.engine.optimizer.param_groups
        freeze(groups, "trunk" if self.recipe.trunk_frozen(self.step) else None)
        for group in groups:
            group["lr"] = rate * group["lr_scale"]
        self.engine.train()
        logs: dict[str, list[Tensor]] = {}
        skipped: dict[str, list[str]] = {}
        weights, waited = self._weights(streams), 0.0
        rounds = [(turn, name) for turn in range(self.recipe.optim.accumulate) for name in streams]
        for number, (turn, name) in enumerate(rounds, start=1):
            before = time.perf_counter()
            batch = _take(streams[name])
            waited += time.perf_counter() - before
            self.positions[name] = batch.position
            for shard, reasons in batch.skipped.items():
                skipped.setdefault(shard, []).extend(reasons)
            place = ("step", self.recipe.seed, self.step, name, self.world.rank, *([turn] if turn else []))
            torch.manual_seed(seed_of(*place))
            total, parts = self.objective.losses(self.engine, batch, self.step, torch_rng(*place))
            backward(self.engine, total * weights[name] / len(rounds), last=number == len(rounds))
            for key, value in {"loss": total, **parts}.items():
                logs.setdefault(f"{name}/{key}", []).append(torch.as_tensor(value).detach())
        norm = optimizer_step(self.engine)
        # One collective carries the losses, the bad samples and the wish to stop.
        numbers = [torch.stack([v.double().cpu().reshape(()) for v in values]).mean() for values in logs.values()]
        extra = torch.tensor([sum(map(len, skipped.values())), stopper.asked()], dtype=torch.float64)
        summed = self.world.sum(torch.cat([torch.stack(numbers), extra])).cpu()
        fields = {key: value / self.world.size for key, value in zip(logs, summed[:-2].tolist())}
        self._check_finite(fields | {"norm": norm})
        if summed[-2]:
            everybody = self.world.gather(skipped)
            skipped = {s: [r for one in everybody for r in one.get(s, [])] for one in everybody for s in one}
        loss = sum(fields[f"{name}/loss"] * weights[name] for name in streams) / len(streams)
        self.step += 1
        self.samples += self.samples_a_step(streams)
        averaged = self.recipe.optim.ema is not None  # the only reason to gather what ZeRO 3 has split
        with checkpoint.whole_parameters(self.engine) if averaged else nullcontext():
            self.objective.after_step(self.step)
        return {"loss": loss, **fields, "lr": rate, "norm": norm, "wait": waited}, skipped, bool(summed[-1])

    def samples_a_step(self, streams: Iterable[str]) -> int:
        """How many images all ranks take from these streams in one optimiser step."""
        batches = sum(self.recipe.streams[name].batch for name in streams)
        return batches * self.recipe.optim.accumulate * self.world.size

    def _weights(self, streams: Iterable[str]) -> dict[str, float]:
        """What each stream's loss is multiplied by before the mean over streams, micro-batches and ranks is taken."""
        streams, reduce = list(streams), self.recipe.loss.reduce
        if reduce == "stream_mean":
            return dict.fromkeys(streams, 1.0)
        shares = reduce if isinstance(reduce, dict) else {name: self.recipe.streams[name].batch for name in streams}
        whole = sum(shares[name] for name in streams)
        return {name: len(streams) * shares[name] / whole for name in streams}

    def _check_finite(self, fields: dict[str, float]) -> None:
        bad = [key for key, value in fields.items() if value != value or value in (float("inf"), float("-inf"))]
        if bad:
            raise UserError(
                f"step {self.step}: {', '.join(bad)} is not finite; the last checkpoint is untouched",
                expected="finite losses",
                todo="lower optim.lr, raise optim.warmup, or set precision=fp32 (in a new run=...)",
            )

    # Between steps ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        if self.world.first:
            check_there(self.run)
        self._gather_positions()
        facts = {"step": self.step, "samples": self.samples, "world": self.world.size, "positions": self._left}
        checkpoint.save(
            self.run, self.engine, self.step, dict(self.objective.state()), facts,
            keep=self.recipe.output.keep, world=self.world,
        )  # fmt: skip

    def export(self) -> None:
        """Write what users load."""
        from safetensors import SafetensorError

        try:
            self.objective.artefact(self.run / EXPORT)
        except (OSError, SafetensorError) as error:
            raise checkpoint.not_written(f"the export {self.run / EXPORT}", self.run, error) from error

    def write_pictures(self) -> None:
        everybody = self.engine.zero_optimization_stage() == 3  # whose model answers only when all ranks ask
        if not self.recipe.heldout or not (self.world.first or everybody):
            return
        folder = self.run / "pictures"
        folder.mkdir(exist_ok=True)
        for batch in self.heldout(limit=PICTURED):
            for key, picture in self.objective.pictures(batch).items():
                if not self.world.first:
                    continue
                temporary = folder / f".{key}.tmp.png"
                picture.save(temporary)
                temporary.replace(folder / f"step-{self.step:08d}-{key}.png")


def _take(stream: Iterator[Batch]) -> Batch:
    """The next batch; what is wrong with a stream's data is for this rank to say, which reads samples of its own."""
    try:
        return next(stream)
    except UserError as error:
        raise RankError(error.what, expected=error.expected, todo=error.todo) from None


def _data_note(stream: StreamConfig) -> str:
    """A text that changes with the data: paths, and sizes of local files."""
    paths = [path for source in sources_of(stream, "streams") for path in source.shards]
    sizes = [os.path.getsize(path) if os.path.isfile(path) else None for path in paths]
    return hashlib.sha256(repr((paths, sizes)).encode()).hexdigest()[:16]


def train(recipe: Recipe, objective: Objective, world: World, stopper: Stopper) -> bool:
    """Train to the recipe's last step, or until asked to stop; True if the run is finished. All ranks call it."""
    training = Training(recipe, objective, world)
    training.begin_stage(stopper)
    console, output = training.console, recipe.output
    journal = Journal(training.run, training.step if training.started_from else None) if world.first else None
    mirrors = open_mirrors(recipe, console.say) if world.first else []

    def note(kind: str, **fields: Any) -> None:
        if journal:
            record = journal.write(kind, training.step, time=round(time.time(), 3), **fields)
            for mirror in mirrors:
                mirror(record)

    def judge() -> None:
        """Held-out figures, in the journal and on the console."""
        figures = dict(objective.evaluate(training.heldout())) if recipe.heldout else {}
        if figures:
            note("heldout", **figures)
            console.figures(f"held out at step {training.step}", figures)

    def due(every: int) -> bool:
        return training.step == recipe.steps or (every > 0 and training.step % every == 0)

    if training.step < recipe.steps and not training.started_from:
        judge()
    streams: dict[str, ShardStream] = {}
    stopping = False
    with stopper:
        while training.step < recipe.steps and not stopping:
            training.begin_stage(stopper)
            streams = training.streams(streams)
            begun = time.perf_counter()
            fields, skipped, stopping = training.one_step(streams, stopper)
            note("step", **fields, seconds=round(time.perf_counter() - begun, 4))
            for shard, reasons in skipped.items():
                note("skipped", shard=shard, count=len(reasons), reasons=reasons)
                console.say(f"skipped {len(reasons)} of {shard}: {reasons[0]}")
            console.tick(training.step)
            if due(output.log):
                by_stream = {name: fields[f"{name}/loss"] for name in streams}
                images = training.samples_a_step(streams)
                console.line(training.step, fields["loss"], by_stream, fields["norm"], fields["lr"], images)
            if due(output.heldout):
                judge()
            if due(output.pictures):
                training.write_pictures()
            # At the end of a stage too: statistics come before the next one, and may be interrupted.
            if due(output.save) or stopping or recipe.stage_at(training.step)[1] == 0:
                training.save()
                if world.first:
                    curves.draw(training.run)
    for stream in streams.values():
        stream.close()
    finished = training.step == recipe.steps
    with checkpoint.whole_parameters(training.engine):
        if finished and world.first:
            training.export()
    if finished:
        console.say(f"finished in {console.elapsed()}: {training.run / EXPORT}")
    else:
        why = stopper.reason or "another rank was asked to"
        console.say(f"stopped ({why}) and saved at step {training.step}; the same command goes on")
    world.barrier()
    return finished
