"""The report's pictures: drawn where there is something to show, from the right figures, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import figure, report, score, three_groups
from PIL import Image

from eval.delta_m import compare
from eval.examples import examples_file, load_examples, save_examples
from eval.plots import looks
from eval.report import bars, radar, resolution, strips
from eval.report.sheet import GAP, sheet, wrapped
from eval.scores import save, score_file
from eval.tables import delta_table
from eval.tasks.task import Example

VALUES = {"base": (50.0, 40.0, 60.0), "a": (55.0, 44.0, 63.0), "b": (45.0, 36.0, 57.0)}


def rows_of(scores, baseline="base"):
    return compare(delta_table(scores), baseline, undefined="missing")


def drawn_lines(axes) -> dict[str, np.ndarray]:
    """Label → ordinates of every line of a figure's axes."""
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in axes.lines}


def test_looks_tell_models_apart():
    names = [f"model {number}" for number in range(30)]
    found = looks(names, "model 3")
    plain = {(look.colour, str(look.line), look.marker) for look in found.values()}
    assert len(plain) == 30 and found["model 3"].colour == "#000000"
    assert len({(str(look.line), look.marker) for look in list(found.values())[:8]}) == 8  # in grey print, too
    assert ":" not in {look.line for look in found.values()}  # that is chance


def test_bars_and_whiskers_are_the_estimates():
    rows = [row for row in rows_of(three_groups(VALUES)) if row.model != "base"]
    axes = bars.draw(rows, "base", looks(list(VALUES), "base")).axes[0]
    widths = sorted(patch.get_width() for patch in axes.patches if patch.get_height() < 0.5 and patch.get_width())
    assert widths == pytest.approx(sorted([*[10.0, 10.0, 5.0], *[-10.0, -10.0, -5.0], 25 / 3, -25 / 3]))
    assert bars.delta_bars(rows_of(three_groups({"base": VALUES["base"]})), "base", {}) is None


def test_radar_has_a_polygon_a_model_and_the_baseline_ring():
    rows = rows_of(three_groups(VALUES))
    values = {row.model: [found.mean for found in row.groups.values()] for row in rows if row.model != "base"}
    lines = drawn_lines(radar.draw(values, list(rows[0].groups), "base", looks(list(VALUES), "base")).axes[0])
    assert np.allclose(lines["base (baseline)"], 0)
    assert lines["a"] == pytest.approx([10, 10, 5, 10]) and lines["b"] == pytest.approx([-10, -10, -5, -10])  # closed


def test_radar_leaves_out_what_has_no_figure_and_says_so():
    scores = three_groups(VALUES)
    lacking = [each for each in scores if (each.model, each.task) != ("b", "pairs")]
    drawn = looks(list(VALUES), "base")
    assert "Not drawn" not in radar.radar(rows_of(scores), "base", drawn).caption
    assert "Not drawn: b (n/a in Retrieval)." in radar.radar(rows_of(lacking), "base", drawn).caption
    none = [each for each in lacking if each.model != "a"]
    assert radar.radar(rows_of(none), "base", drawn) is None  # nobody has all three
    two_groups = [each for each in scores if each.task != "pairs"]
    assert radar.radar(rows_of(two_groups), "base", drawn) is None
    assert radar.radar([], "base", drawn) is None


def test_radar_says_where_its_scale_is_logarithmic():
    wide = radar.radar(rows_of(three_groups({"base": (1.0, 40.0, 60.0), "a": (90.0, 41.0, 59.0)})), "base",
                       looks(["base", "a"], "base"))  # fmt: skip
    near = radar.radar(rows_of(three_groups(VALUES)), "base", looks(list(VALUES), "base"))
    assert "logarithmic" in wide.caption and "logarithmic" not in near.caption


def at_sizes(model="a", shown=None, sizes=(128, 32, 64), **about):
    """Scores of one task at several sizes, 30 + size / 10 each; `shown`: the size that the model takes instead."""
    found = []
    for size in sizes:
        metrics = {"mIoU": figure(30 + size / 10, 2.0, chance=5.0, counts=size == 64)}
        settings, facts = {"task": "segmentation", "size": size, "lr": 0.1}, {"size": shown or [size, 2 * size]}
        about |= {"settings": settings, "facts": facts, "counts": size == 64}
        found.append(score(model, f"probe_{size}", metrics, group="Dense", kind="segmentation", **about))
    return found


def test_curves_run_over_the_sizes_that_were_shown():
    scores = [*at_sizes(), *at_sizes("fixed", [96, 96])]
    assert resolution.families(scores) == [["probe_128", "probe_32", "probe_64"]]
    points = resolution.points(scores, "mIoU")
    assert [point.size for point in points["a"]] == [(32, 64), (64, 128), (128, 256)]
    assert [point.mean for point in points["a"]] == pytest.approx([33.2, 36.4, 42.8])
    assert [point.error for point in points["a"]] == pytest.approx([2.0] * 3) and points["a"][0].chance == 5.0
    assert len(points["fixed"]) == 1 and points["fixed"][0].side == pytest.approx(96)
    (shown,) = resolution.curves(scores, looks(["a", "fixed"], "a"))
    assert shown.name == "resolution probe_128" and "segmentation on tabletop" in shown.caption


def test_seeds_are_averaged_in_a_curve():
    scores = at_sizes(seed=0, seeded=True)
    more = [
        each.model_copy(update={"seed": 1, "metrics": {"mIoU": figure(each.metrics["mIoU"].value + 2, 2.0)}})
        for each in at_sizes(seed=1, seeded=True)
    ]
    point = resolution.points(scores + more, "mIoU")["a"][0]
    assert point.mean == pytest.approx(34.2) and point.error == pytest.approx((1.0 + 2.0**2) ** 0.5)


def test_no_curve_where_sizes_are_one_or_settings_differ():
    drawn = looks(["a"], "a")
    assert resolution.curves(at_sizes(shown=[96, 96]), drawn) == []
    assert resolution.curves(at_sizes(sizes=(64,)), drawn) == []
    other = [
        each.model_copy(update={"settings": {**each.settings, "lr": each.settings["size"]}}) for each in at_sizes()
    ]
    assert resolution.families(other) == [] and resolution.curves(other, drawn) == []
    assert resolution.curves(three_groups(VALUES), looks(list(VALUES), "base")) == []


def test_chance_far_below_all_curves_is_said_rather_than_drawn():
    points = resolution.points(at_sizes(), "mIoU")
    far = resolution.draw({"mIoU": points}, {"mIoU": "mIoU"}, looks(["a"], "a")).axes[0]
    assert [text.get_text() for text in far.texts] == ["chance, 5, is off the axis"] and len(far.lines) == 1
    close = {"a": [resolution.Point(point.size, point.mean, point.error, 25.0) for point in points["a"]]}
    near = resolution.draw({"mIoU": close}, {"mIoU": "mIoU"}, looks(["a"], "a")).axes[0]
    assert not near.texts and len(near.lines) == 2 and near.lines[1].get_ydata()[0] == 25.0


def plain(shade: int, height=20, width=30) -> np.ndarray:
    return np.full((height, width, 3), shade, np.uint8)


def examples(answer: int, count=3) -> list[Example]:
    return [Example(plain(10), plain(60 + 10 * number), plain(answer + 10 * number)) for number in range(count)]


def stored(folder, model, answer, count=3, **about):
    """A score of `model` that stands in `folder` with examples."""
    found = score(model, **about)
    file = score_file(folder, model, found.identity, found.task, found.seed)
    save(found, file)
    save_examples(examples(answer, count), file)
    return found


def test_examples_come_back_one_by_one(tmp_path):
    file = score_file(tmp_path, "a", "a-0123456789", "knn", 0)
    stored(tmp_path, "a", 150, count=3)
    rows = load_examples(file)
    assert {name: len(row) for name, row in rows.items()} == {"picture": 3, "truth": 3, "answer": 3}
    assert [picture.getpixel((5, 5))[0] for picture in rows["answer"]] == [150, 160, 170]
    examples_file(file).write_bytes(b"no picture")
    assert load_examples(file) is None


def test_strips_put_every_models_answer_beside_the_truth(tmp_path):
    scores = [stored(tmp_path, f"model {number}", 100 + 20 * number, seeded=True) for number in range(6)]
    later = [stored(tmp_path, each.model, 0, seeded=True, seed=1) for each in scores]
    silent = score("silent")
    (strip,) = strips.strips(tmp_path, [*scores, *later, silent])
    assert "Seed 0." in strip.caption and "No answers to show: silent." in strip.caption and "3 test" in strip.caption
    (tmp_path / strip.file).write_bytes(strip.content)
    with Image.open(tmp_path / strip.file) as opened:
        page = np.asarray(opened.convert("L"), dtype=int)
    step = strips.CELL + GAP
    assert page.shape[1] == 8 * step - GAP  # picture, truth and six models
    row = page[-10, strips.CELL // 2 :: step]  # the last example
    assert row.tolist() == pytest.approx([10, 80, *(120 + 20 * number for number in range(6))], abs=3)


def test_examples_of_other_settings_are_not_shown(tmp_path):
    current = stored(tmp_path, "a", 100)
    assert strips.file_of(current, tmp_path) is not None
    assert strips.file_of(current.model_copy(update={"model": "renamed"}), tmp_path) is not None
    assert strips.file_of(current.model_copy(update={"settings": {"size": 64}}), tmp_path) is None
    assert strips.strips(tmp_path, [current.model_copy(update={"settings": {"size": 64}})]) == []


def test_of_several_sizes_the_one_that_counts_is_shown(tmp_path):
    counting = stored(tmp_path, "a", 100, task="probe_64")
    other = stored(tmp_path, "a", 100, task="probe_32", counts=False)
    assert [strip.name for strip in strips.strips(tmp_path, [other, counting])] == ["examples probe_64"]
    assert [strip.name for strip in strips.strips(tmp_path, [other])] == ["examples probe_32"]


def test_sheets_break_long_titles_and_leave_places_empty():
    assert wrapped("sharpened:siglip2-so400m_2x", 100) == ["sharpened:", "siglip2-", "so400m_2x"]
    assert len(wrapped("word " * 40, 100)) == 3 and wrapped("word " * 40, 100)[-1].endswith("…")
    page = sheet([("one", [plain(9), None]), ("two", [plain(9), plain(9)])], 60)
    assert page.size[0] == 2 * 60 + GAP and page.getpixel((30, page.size[1] - 5)) == (232, 235, 238)


def test_every_picture_is_in_both_pages_and_beside_them(tmp_path):
    scores = three_groups(VALUES) + [each for model in VALUES for each in at_sizes(model)]
    scores += [stored(tmp_path / "out" / "scores", model, 100, task="shapes", kind="shapes") for model in VALUES]
    files = report(tmp_path, scores, drawn=True)
    names = ["delta.png", "radar.png", "resolution_probe_128.png", "examples_shapes.webp"]
    assert [name for name in names if f"({name})" in files["report.md"]] == names
    assert all((tmp_path / "out" / name).stat().st_size > 200 for name in names)
    assert files["report.html"].count("<img") == 4 and len(files["report.html"]) < 1_000_000
    assert files["report.html"].count('<div class="scroll"><img') == 1  # a sheet is scrolled, a chart shrinks
