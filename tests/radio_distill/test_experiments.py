"""The experiments' drivers: what an interval covers, what a match measures, and that every run is done once."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import norm, t

from eval.datasets.split import Split
from eval.scores import MetricScore
from radio_distill import train
from teachers.errors import UserError
from teachers.features import Dims, Features
from teachers.seeding import numpy_rng

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = ("arms", "estimates", "matching", "tables", "ablation", "mode_switching", "table2")


@pytest.fixture(scope="module")
def bench():
    """The scripts' modules by name, importable as they are for each other while this file is tested."""
    sys.path.insert(0, str(FOLDER))
    threads = torch.get_num_threads()
    yield {name: importlib.import_module(name) for name in MODULES}
    torch.set_num_threads(threads)
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


def score(value: float, resamples=()) -> MetricScore:
    return MetricScore(value=value, direction="lower", unit="", n=10, resamples=list(resamples))


# Intervals --------------------------------------------------------------------------------------------------------


def test_with_few_seeds_and_no_doubt_about_pictures_the_interval_is_students(bench):
    found = bench["estimates"].estimate([score(1.0, [1.0, 1.0]), score(2.0, [2.0, 2.0]), score(3.0, [3.0, 3.0])])
    assert found.mean == 2 and found.reach == pytest.approx(t.ppf(0.975, 2) * 1 / np.sqrt(3))
    assert found.by_seed == (1, 2, 3) and not found.differs


def test_one_seed_leaves_the_doubt_about_pictures(bench):
    resamples = numpy_rng("pictures").normal(5, 0.1, 2000)
    found = bench["estimates"].estimate([score(5.0, resamples)])
    assert found.reach == pytest.approx(norm.ppf(0.975) * 0.1, rel=0.05)


def test_doubts_about_seeds_and_pictures_add_up_and_cover_the_truth(bench):
    rng, hits, rounds = numpy_rng("coverage"), 0, 400
    for _ in range(rounds):
        pictures = rng.normal(0, 1)  # of this choice of test pictures; its bootstrap knows the spread
        values = rng.normal(pictures, 1, 3)
        spread = rng.normal(0, 1, 200)
        found = bench["estimates"].interval(values, [value + spread for value in values])
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / rounds <= 1.0


def test_a_difference_keeps_the_pairing_of_seeds_and_pictures(bench):
    noise = numpy_rng("noise").normal(0, 1, (3, 200))
    base = [score(v, v + row) for v, row in zip((1.0, 5.0, 9.0), noise)]
    ours = [score(v + 0.1, v + 0.1 + row) for v, row in zip((1.0, 5.0, 9.0), noise)]
    found = bench["estimates"].difference(ours, base)
    assert found.mean == pytest.approx(0.1) and found.reach < 1e-9 and found.differs
    assert bench["estimates"].estimate(ours).reach > 1


def test_a_difference_is_only_resolved_by_several_seeds(bench):
    one, two = ([score(2.0, [2.0, 2.1])] * count for count in (1, 2))
    texts = [bench["tables"].cell(bench["estimates"].estimate(scores), "", signed=True) for scores in (one, two)]
    assert not texts[0].startswith("**") and texts[1].startswith("**+2.000 ±")


# Matching ---------------------------------------------------------------------------------------------------------


class Echo:
    """A student whose head says what the teacher says, `off` to a side, or nothing but `constant`."""

    def __init__(self, teachers, size, off=0.0, constant=None, summary_sign=1):
        self.teachers, self.size, self.off, self.constant, self.sign = teachers, size, off, constant, summary_sign
        self.seen = 0

    def grid(self, size):
        return size[0] // 8, size[1] // 8

    def everything(self, images):
        from radio_distill.losses import resize_map

        target = self.teachers.targets("a", self.grid(self.size), False)
        rows = slice(self.seen, self.seen + len(images))
        self.seen += len(images)
        maps = resize_map(target.spatial[rows], self.grid(self.size)) + self.off
        if self.constant is not None:
            maps = self.constant.expand_as(maps)
        return {"a": Features(self.sign * 3 * target.summary[rows], maps)}


def pictures(count: int = 45) -> Split:
    noise = numpy_rng("match").integers(0, 256, (count, 3, 48, 64), dtype=np.uint8)
    return Split(data="noise", part="val", count=count, identity="noise", source="a test", shape=(48, 64),
                 image=lambda index: torch.from_numpy(noise[index]))  # fmt: skip


@pytest.fixture(scope="module")
def teachers(bench):
    from radio_distill.recipe import TeacherConfig

    config = TeacherConfig(
        encoder="random", sharpen="bilinear", options={"patch": 8, "width": 12, "depth": 1, "image_size": 32}
    )
    return bench["matching"].Teachers({"a": config}, pictures())


@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_a_student_that_repeats_its_teacher_has_no_error_and_the_best_constant_has_one(bench, teachers, size):
    from radio_distill.losses import resize_map

    match = bench["matching"].match
    found = match(Echo(teachers, size), teachers, size, False, "here")
    assert list(found) == ["feature error a here", "feature cosine a here", "summary cosine a here"]
    assert [figure.value for figure in found.values()] == pytest.approx([0, 0, 0], abs=1e-9)
    grid = (size[0] // 8, size[1] // 8)
    maps = resize_map(teachers.targets("a", grid, False).spatial, grid)
    mean = maps.mean(dim=(0, 2, 3))[:, None, None]
    wanted = 1 - torch.cosine_similarity(maps, mean[None], dim=1).mean().item()
    found = match(Echo(teachers, size, constant=mean, summary_sign=-1), teachers, size, False, "here")
    assert found["feature error a here"].value == pytest.approx(1, rel=1e-5)
    assert found["summary cosine a here"].value == pytest.approx(2)
    assert found["feature cosine a here"].value == pytest.approx(wanted)
    assert found["feature error a here"].n == 45 and len(found["feature error a here"].resamples) == 200


def test_an_offset_counts_as_a_share_of_the_teachers_variance(bench, teachers):
    size = (32, 32)
    maps = teachers.targets("a", (4, 4), False).spatial
    variance = (maps - maps.mean(dim=(0, 2, 3), keepdim=True)).square().mean().item()
    found = bench["matching"].match(Echo(teachers, size, off=0.5), teachers, size, False, "x")
    assert found["feature error a x"].value == pytest.approx(0.25 / variance, rel=1e-5)


def test_teachers_are_asked_once_whatever_is_asked_of_them(bench, teachers, monkeypatch):
    teachers.targets("a", (4, 4), False)
    monkeypatch.setattr(type(teachers.teachers["a"].base), "forward", lambda *_: pytest.fail("asked again"))
    assert teachers.targets("a", (4, 4), False).spatial.shape == (45, 12, 4, 4)
    assert teachers.teachers["a"].base.dims == Dims(12, 12)


# Runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tiny_recipe, tmp_path_factory):
    """The tiny recipe with the teachers' names that the experiments' arms know."""
    folder = tmp_path_factory.mktemp("experiment")
    document = tiny_recipe(folder / "unused")
    document["teachers"] = dict(zip(("clip", "siglip"), document["teachers"].values()))
    document["teachers"]["clip"]["sharpen"] = "bilinear"
    document["streams"]["high"] |= {"size": 64, "sharpen": True}
    document["stages"], document["heldout"] = [{"steps": 2}], None
    (folder / "tiny.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "tiny.yaml"


@pytest.fixture
def started(bench, monkeypatch):
    """Trainers run in this process; the labels of those that were started."""
    labels: list[str] = []
    monkeypatch.setattr("radio_distill.curves.draw", lambda run: None)

    def in_process(trial) -> int:
        labels.append(trial.label)
        return train.main(list(trial.command))

    monkeypatch.setattr(bench["arms"], "train", in_process)
    return labels


SMALL = (
    "data={tabletop: {kind: tabletop, size: 64, train: 24, val: 16}}",
    "tasks.knn={task: knn, data: tabletop, size: 64, k: 3}",
    "tasks.segmentation={task: segmentation, data: tabletop, size: 64, seeds: [0, 1], steps: 3, batch: 8, labels: 8}",
)


@pytest.fixture(scope="module")
def ablated(bench, recipe):
    """Arguments of an ablation of three arms."""
    said = ["--recipe", str(recipe), "--out", str(recipe.parent / "ablation"), "--only", "hybrid", "mse", "phi_s"]
    return said + ["--seeds", "0", "1"] + [word for text in SMALL for word in ("--set", text)]


def test_the_ablation_does_every_run_once_and_goes_on_where_it_was(bench, ablated, started, monkeypatch):
    out = Path(ablated[3])
    real, calls = bench["ablation"].match, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:  # in the second run, trained and half measured
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(bench["ablation"], "match", dies)
    with pytest.raises(KeyboardInterrupt):
        bench["ablation"].main(ablated)
    assert started == ["hybrid seed 0", "mse seed 0"]
    assert [path.parent.name for path in out.glob("*/measured.json")] == ["hybrid-seed0"]
    assert bench["ablation"].main(ablated) == 0
    assert started[2:] == ["phi_s seed 0", "hybrid seed 1", "mse seed 1", "phi_s seed 1"]
    assert bench["ablation"].main(ablated) == 0 and len(started) == 6

    data = json.loads((out / "ablation.json").read_text())
    rows = {row["arm"]: row for row in data["arms"]}
    assert rows["mse"]["seeds"] == [0, 1] and rows["mesa"]["seeds"] == [] and rows["mse"]["against"] == "hybrid"
    figures = rows["mse"]["figures"]
    assert {
        "feature error clip low",
        "feature error siglip high",
        "summary cosine clip low",
        "feature cosine clip high",
        "k-NN",
        "mIoU",
    } <= set(figures)
    one = json.loads((out / "mse-seed1" / "measured.json").read_text())
    assert figures["k-NN"]["by_seed"][1] == one["metrics"]["k-NN"]["value"] and one["training"]["steps"] == 2
    change = rows["mse"]["changes"]["mIoU"]["mean"]
    assert change == pytest.approx(figures["mIoU"]["mean"] - rows["hybrid"]["figures"]["mIoU"]["mean"])
    page = (out / "ablation.md").read_text()
    assert "| plain MSE |" in page and "| PHI-S − plain MSE |" in page and "2 seeds, 2 steps a run" in page
    assert (out / "ablation.png").stat().st_size > 10_000


def test_arms_differ_in_what_they_say_they_do(bench, recipe):
    ablation, arms = bench["ablation"], bench["arms"]
    options = arms.command_line("", ablation.ARMS, "out").parse_args(["--recipe", str(recipe), "--seeds", "0"])
    losses = {trial.arm.name: trial.recipe for trial in arms.trials(options, ablation.ARMS)}
    assert losses["hybrid"].loss.feature == "hybrid" and losses["hybrid"].loss.normalise == "none"
    assert losses["mse"].loss.normalise == "none" and losses["phi_s"].loss.normalise == "phi_s"
    for arm, base in ablation.AGAINST.items():
        flat = [
            yaml.safe_dump(losses[name].model_dump(mode="json", exclude={"run"})).splitlines() for name in (arm, base)
        ]
        changed = sum(mine != other for mine, other in zip(*flat, strict=True))
        # MESA has a weight and a start; of the crops there are two numbers a stream, which shifts bring by themselves
        wanted = {"mesa": 2, "light": 2, "crops": 4, "shift": 5}.get(arm, 1)
        assert changed == wanted, arm


def test_another_way_of_measuring_measures_again_and_trains_nothing(bench, ablated, started, monkeypatch):
    monkeypatch.setattr(bench["ablation"], "KEY", "another")
    measured = Path(ablated[3]) / "mse-seed0" / "measured.json"
    before = measured.read_text()
    assert bench["ablation"].main([*ablated, "--seeds", "0", "--only", "mse"]) == 0 and started == []
    assert json.loads(measured.read_text())["metrics"] == json.loads(before)["metrics"]
    assert json.loads(measured.read_text())["key"].startswith("another")


def test_a_run_that_somebody_else_is_at_is_left_alone(bench, ablated, started, capsys):
    arguments = [*ablated, "--seeds", "5", "--only", "mse"]
    out = Path(ablated[3])
    lock = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", lock, str(out / ".mse-seed5.lock")], stdin=-1, stdout=-1, text=True
    )
    try:
        assert holder.stdout.readline() == "\n"
        assert bench["ablation"].main(arguments) == 1 and started == []  # and nothing to report
    finally:
        holder.communicate("\n")
    assert bench["ablation"].main(arguments) == 0 and started == ["mse seed 5"]


def test_a_run_that_fails_is_tried_again_and_then_told(bench, ablated, monkeypatch, capsys):
    failures = []
    monkeypatch.setattr(bench["arms"], "train", lambda trial: failures.append(trial.label) or 2)
    monkeypatch.setattr(bench["arms"], "PATIENCE", 0.0)
    assert bench["ablation"].main([*ablated, "--seeds", "0", "7", "--only", "phi_s"]) == 1
    said = capsys.readouterr().out
    assert failures == ["phi_s seed 7"] * 2 and "phi_s seed 7: given up" in said and "1 of 2 runs" in said


def test_mode_switching_measures_every_head_at_five_sizes_and_marks_where_it_was_trained(bench, recipe, started):
    out = recipe.parent / "modes"
    arguments = [
        "--recipe",
        str(recipe),
        "--out",
        str(out),
        "--seeds",
        "0",
        "--only",
        "both",
        "split",
        "--scenes",
        "12",
    ]
    assert bench["mode_switching"].main([*arguments, "streams.low.batch=2", "streams.high.batch=2"]) == 0
    assert started == ["both seed 0", "split seed 0"]
    data = json.loads((out / "mode_switching.json").read_text())
    assert data["arms"]["split"]["trained at"] == {"clip": [32], "siglip": [64]}
    rows = data["figures"]
    assert len(rows) == 3 * 2 * 2 * 5 and {row["size"] for row in rows} == {48, 64, 96, 128, 160}
    marked = {(row["arm"], row["head"], row["size"]) for row in rows if row["trained"]}
    assert marked == {("both", "clip", 64), ("both", "siglip", 64), ("split", "siglip", 64)}
    page = (out / "mode_switching.md").read_text()
    assert page.count("| siglip | CLIP low, SigLIP high |") == 3 and "| 48 px |" in page
    assert (out / "mode_switching.png").stat().st_size > 10_000


def test_table_two_trains_sharpeners_then_students_and_scores_seeds_as_repetitions(bench, recipe, started):
    out = recipe.parent / "table2"
    shards = yaml.safe_load(recipe.read_text())["streams"]["low"]["shards"]
    small = [f"streams.train={{shards: '{shards}', size: 64, batch: 2, shuffle: 8}}", "stages.0.steps=2"]
    small += ["heldout=null", "statistics.batches=2", "optim.warmup=1"]
    small += ["output={log: 1, save: 2, heldout: 0, pictures: 0}"]
    arguments = ["--recipe", str(recipe), "--out", str(out), "--only", "none", "featsharp", "--seeds", "0", "1"]
    arguments += [word for text in small for word in ("--set-sharpener", text)]
    arguments += ["--eval", "recipes/eval/ablation.yaml", *(word for text in SMALL for word in ("--set", text))]
    arguments += ["--set", "tasks.zero_shot={task: knn, data: tabletop, size: 64, k: 4}"]
    arguments += ["streams.low.batch=2", "streams.high.batch=2"]
    assert bench["table2"].main(arguments) == 0
    assert started == [f"featsharp-{teacher} seed {seed}" for seed in (0, 1) for teacher in ("clip", "siglip")] + [
        f"{arm} seed {seed}" for seed in (0, 1) for arm in ("none", "featsharp")
    ]
    used = [
        yaml.safe_load((out / run / "recipe.yaml").read_text())["teachers"]["siglip"]["sharpen"]
        for run in ("none-seed0", "featsharp-seed1")
    ]
    assert used[0] == "none" and used[1].endswith("sharpeners/featsharp-siglip-seed1")
    page = (out / "report" / "report.md").read_text()
    assert "**none**" in page.splitlines()[0] and "2 training runs" in page and "featsharp" in page
    assert bench["table2"].main([*arguments, "--report-only"]) == 0 and len(started) == 8


def test_table_two_reads_the_students_recipe_before_a_sharpener_trains(bench, recipe, started):
    arguments = ["--only", "featsharp", "--seeds", "0", "--recipe", str(recipe), "--out", str(recipe.parent / "wrong")]
    with pytest.raises(UserError, match="stages.0"):
        bench["table2"].main([*arguments, "stages=[{steps:1920}]"])
    assert started == []
