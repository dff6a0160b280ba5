"""The journal, which is the truth, and what only shows it: console, curves, mirrors."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from radio_distill import console, curves, journal, mirrors
from radio_distill.recipe import load_recipe


def write(run, steps, started_from=None, **fields):
    book = journal.Journal(run, started_from)
    for step in steps:
        book.write("step", step, loss=step / 2, time=1.0, **fields)
    book.close()


def test_records_are_on_disk_as_they_are_written_one_a_line(tmp_path):
    book = journal.Journal(tmp_path, None)
    for n in range(3):
        assert book.write("step", n, loss=0.5) == {"kind": "step", "step": n, "loss": 0.5}
        assert len(journal.read(tmp_path)) == n + 1
    assert [json.loads(line)["step"] for line in (tmp_path / journal.NAME).read_text().splitlines()] == [0, 1, 2]


def test_going_on_from_a_checkpoint_drops_what_was_written_after_it(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, [5, 6], started_from=4, again=True)
    assert [(r["step"], "again" in r) for r in journal.read(tmp_path)] == [(n, n > 4) for n in (1, 2, 3, 4, 5, 6)]


def test_without_a_checkpoint_the_journal_begins_anew(tmp_path):
    write(tmp_path, [0, 1, 2])
    write(tmp_path, [0], started_from=None)
    assert [r["step"] for r in journal.read(tmp_path)] == [0]


def test_a_line_that_a_crash_tore_is_left_out_and_then_gone(tmp_path):
    write(tmp_path, [1, 2])
    with open(tmp_path / journal.NAME, "a") as file:
        file.write('{"kind": "step", "st')
    assert [r["step"] for r in journal.read(tmp_path)] == [1, 2]
    write(tmp_path, [3], started_from=2)
    assert [r["step"] for r in journal.read(tmp_path)] == [1, 2, 3]
    assert not list(tmp_path.glob("*.tmp"))


def test_series_are_the_numbers_of_a_kind_by_name(tmp_path):
    write(tmp_path, [1, 2], text="no number")
    assert journal.series(journal.read(tmp_path), "step") == {"loss": ([1, 2], [0.5, 1.0])}
    assert journal.series(journal.read(tmp_path), "heldout") == {} and journal.read(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (192, "3m12s"), (3599.7, "1h00m"), (18420, "5h07m"), (1e5, "1d03h")],
)
def test_durations_are_for_people(seconds, text):
    assert console.duration(seconds) == text


def test_the_console_says_how_far_how_well_how_fast_and_until_when(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.now)
    screen = console.Console(loud=True, total=200, done=40)
    for step in range(41, 101):
        clock.now += 100.0 if step <= 45 else 0.5  # the first steps compile: they are no measure of the rest
        screen.tick(step)
        if step == 44:
            screen.line(step, 1.5, {"low": 1.5}, 0.5, 1e-3, 32)
    screen.line(100, 1.234, {"low": 1.1, "high": 1.368}, 0.87, 1e-3, images_a_step=32)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step  44/200  22%  loss 1.500  norm 0.50  lr 1.0e-03  eta ..."
    assert last.startswith("step 100/200  50%  loss 1.234 (low 1.100, high 1.368)  norm 0.87  lr 1.0e-03  64 img/s  ")
    assert "  eta 50s (" in last
    quiet = console.Console(loud=False, total=200, done=0)
    quiet.line(1, 1.0, {}, 1.0, 1.0, 1)
    assert capsys.readouterr().out == ""


def test_curves_are_drawn_whole_or_not_at_all(trained, tmp_path):
    with Image.open(trained.run / "curves.png") as picture:
        assert picture.width > 1000 and picture.height > 300
    assert not list(trained.run.glob(".curves*"))
    assert curves.draw(tmp_path) is None  # there is nothing to draw yet


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    import yaml

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run")))
    return lambda *overrides: load_recipe(tmp_path / "tiny.yaml", overrides)


def test_a_mirror_that_fails_is_told_once_and_left_out(recipe, monkeypatch):
    seen, said = [], []

    def fragile(run):
        def write(record):
            seen.append(record)
            raise ConnectionError("the server has gone")

        return write

    monkeypatch.setattr(mirrors, "_tensorboard", fragile)
    [mirror] = mirrors.open_mirrors(recipe("output.tensorboard=true"), said.append)
    mirror({"kind": "step", "step": 1})
    mirror({"kind": "step", "step": 2})
    assert len(seen) == 1 and said == ["TensorBoard is left out from here on: the server has gone"]


def test_weights_and_biases_is_offline_where_nobody_is_logged_in_and_never_needed(recipe, monkeypatch):
    opened, logged, said = [], [], []
    run = SimpleNamespace(log=logged.append)
    api = SimpleNamespace(api_key=None)
    init = lambda **given: opened.append(given["mode"]) or run  # noqa: E731
    library = SimpleNamespace(api=api, Settings=lambda **given: None, init=init)
    monkeypatch.setitem(sys.modules, "wandb", library)
    [mirror] = mirrors.open_mirrors(recipe("output.wandb=online"), said.append)
    mirror({"kind": "heldout", "step": 3, "low/a/feature_error": 0.5, "time": 9.0, "reasons": ["text"]})
    library.api.api_key = "something"
    mirrors.open_mirrors(recipe("output.wandb=online"), said.append)
    assert opened == ["offline", "online"]
    assert logged == [{"heldout/low/a/feature_error": 0.5, "finished steps": 3}]
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    assert mirrors.open_mirrors(recipe("output.wandb=offline"), said.append) == []
    assert len(said) == 1 and said[0].startswith("Weights & Biases is not used:")
