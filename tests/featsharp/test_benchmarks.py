"""The benchmarks' formulations are one function, their lines keep the contract, and JBU's memory keeps its bound."""

import json
import runpy
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from featsharp.config import SharpenerConfig
from featsharp.runs import open_runs
from featsharp.task import SharpenObjective
from teachers.catalogue import build
from teachers.seeding import torch_rng
from tests.featsharp.test_fidelity import add, picture

FOLDER = Path(__file__).parents[2] / "benchmarks"
CONTRACT = {"variant", "channels", "height", "width", "ms", "peak_bytes", "flops", "bytes", "device"}


@pytest.fixture
def benchmark(monkeypatch):
    """Loads a benchmark's names as a script would, with its neighbours importable and torch's threads kept."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield lambda name: runpy.run_path(str(FOLDER / name))
    torch.set_num_threads(threads)
    for name in ("measure", "jbu"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name, size", [("jbu.py", "16x12x20"), ("window_attention.py", "32x10x12")])
def test_every_line_keeps_the_contract(benchmark, name, size, monkeypatch, capsys):
    module = benchmark(name)
    monkeypatch.setitem(module["main"].__globals__, "ceiling", lambda device, dtype: (1e11, 1e10))  # takes a second
    monkeypatch.setattr(sys, "argv", [name, "--json", "--sizes", size, "--repeats", "1", "--device", "cpu"])
    module["main"]()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"default", "unfold"} <= {row["variant"] for row in rows}
    for row in rows:
        assert row.keys() >= CONTRACT and row["ms"] > 0 and row["flops"] > 0 and row["bytes"] > 0
        assert f"{row['channels']}x{row['height']}x{row['width']}" == size
        least = 4 * row["channels"] * row["height"] * row["width"] * 2  # the output and its gradient
        assert row["peak_bytes"] >= least


@pytest.mark.parametrize("name, size", [("jbu.py", (6, 8, 12)), ("window_attention.py", (32, 9, 11))])
def test_all_variants_compute_the_same(benchmark, name, size):
    forms = {form.name: form for form in benchmark(name)["variants"](*size, torch.device("cpu"), torch.float32)}
    rng = torch_rng("variants")
    for name, form in forms.items():
        reference = forms["level_unfold" if name.startswith("level") else "unfold"]
        mine, its = form.run(*form.inputs), reference.run(*reference.inputs)
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
        if name == "seven_taps":
            continue
        upstream = torch.randn(its.shape, generator=rng)
        both = [torch.autograd.grad(out, form.inputs, upstream) for out in (mine, its)]
        for a, b in zip(*both):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_switch_silences_42_taps_and_only_within(benchmark):
    from featsharp.config import JbuConfig
    from featsharp.jbu import JbuLevel

    module = benchmark("jbu.py")
    source, kernel = torch.rand(1, 2, 4, 5), torch.rand(1, 49, 8, 10).requires_grad_()
    module["seven_taps"](source, kernel, 2).sum().backward()
    assert kernel.grad.abs().amax((0, 2, 3)).nonzero().flatten().tolist() == [0, 1, 4, 9, 16, 25, 36]
    level, guidance = JbuLevel(2, JbuConfig()), torch.rand(1, 3, 8, 10)

    def gradient():
        return torch.autograd.grad(level(source, guidance).square().sum(), level.project[0].weight)[0]

    right = gradient()
    with module["public_filter_gradient"]():
        assert not torch.allclose(gradient(), right)
    torch.testing.assert_close(gradient(), right)


def test_peak_memory_of_a_level_is_at_most_five_times_its_output(benchmark):
    module = benchmark("jbu.py")
    size, cpu = (768, 128, 128), torch.device("cpu")
    level = next(form for form in module["variants"](*size, cpu, torch.float32) if form.name == "level")
    upstream = torch.ones(1, *size)
    from measure import both_ways, peak_bytes

    resident = sum(x.untyped_storage().nbytes() for x in (*level.inputs, upstream))
    peak = peak_bytes(lambda: both_ways(level, upstream), resident, cpu) / upstream.untyped_storage().nbytes()
    assert 2 < peak <= 5


def test_five_views_cost_the_sharpener_one_backward(benchmark):
    module = benchmark("views.py")
    walks = {}
    for views in module["VIEWS"]:
        config = SharpenerConfig.model_validate({"views": {"jitters": views}, "fusion": {"heads": 4, "hidden": 16}})
        encoder = build("random", patch=8, width=8, depth=1, image_size=32)
        objective = SharpenObjective(encoder, config, say=lambda text: None)
        sight = objective.see(torch.rand(1, 3, *objective.image_size, generator=torch_rng("views")), torch_rng("v"))
        counted: list[int] = []
        fusion = objective.model.adapter.upsampler.fusion
        fusion.register_full_backward_pre_hook(lambda *_, counted=counted: counted.append(1))
        found = module["parts"](objective, sight, time.process_time)
        assert set(found) == {"forward", "views", "own backward", "plain"} and min(found.values()) >= 0
        walks[views] = len(counted)
    assert walks == {1: 1 + 1, 5: 1 + 5}  # ours once, the plain form once a view


@pytest.mark.parametrize("budget", [["--steps", "2"], ["--seconds", "0.05"]], ids=["steps", "seconds"])
def test_the_shelf_trains_each_upsampler_to_its_end_and_leaves_runs_that_can_be_judged(
    benchmark, budget, tmp_path, monkeypatch
):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for number in range(4):
            add(tar, f"{number:04}.jpg", picture(number))
    teacher = {"encoder": "random", "options": {"patch": 8, "width": 8, "depth": 1, "image_size": 32}}
    recipe = {
        "task": "sharpen", "run": "unused", "teachers": {"toy": teacher},
        "sharpener": {"fusion": {"heads": 4, "hidden": 16}, "losses": {"uncertainty": False}, "views": {"jitters": 1}},
        "streams": {"train": {"shards": str(tmp_path / "train-0.tar"), "batch": 2, "size": 64}},
        "stages": [{"steps": 3}], "statistics": {"batches": 2, "cache": str(tmp_path / "cache")},
    }  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe))
    names = ["featsharp", "nearest", "featup", "featup_seven_taps"]
    command = ["shelf.py", str(tmp_path / "toy.yaml"), *budget, "--only", *names, "--seeds", "1", "--no-report"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    assert benchmark("shelf.py")["main"]() == 0
    runs = open_runs(sorted((tmp_path / "out").iterdir()))
    assert [run.label for run in runs] == sorted(f"{name}-seed1" for name in names)
    assert all(run.recipe["seed"] == 1 for run in runs)
    for run in runs:
        spent = json.loads((run.path / "spent.json").read_text())
        assert spent["steps"] == 2 if budget[0] == "--steps" else spent["steps"] >= 1
