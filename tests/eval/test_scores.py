"""Score files: written whole, read strictly, never lost, never mixed across protocols."""

from __future__ import annotations

import json

import pytest

from eval import scores as S
from eval.kept import examples_file
from teachers.errors import UserError


def make(**changes) -> S.Score:
    figure = S.MetricScore(value=51.5, direction="higher", unit="%", n=200, chance=10.0, resamples=[50.0, 52.0])
    plain = {
        "model": "a", "replicate": 0, "identity": "1234567890abcdef", "partners": [], "task": "knn", "kind": "knn",
        "protocol": 1, "group": "Classification", "data": "tabletop", "data_identity": "d", "settings": {"k": 20},
        "seed": 0, "seeded": False, "metrics": {"top-1": figure}, "commit": "c", "libraries": {},
        "date": "2026-01-01 00:00:00", "seconds": 1.5,
    }  # fmt: skip
    return S.Score(**plain | changes)


def test_a_score_comes_back_as_it_went(tmp_path):
    file = S.score_file(tmp_path, "a/b c", "1234567890abcdef", "knn", 0)
    S.save(make(), file)
    assert S.load(file) == make()
    assert file.parent.parent == tmp_path and "/" not in file.parent.name.replace(str(tmp_path), "")
    assert [path.name for path in file.parent.iterdir()] == ["knn.seed0.json"]  # nothing temporary left
    assert '"resamples": [ 50.0, 52.0 ]' in file.read_text()


def test_a_figure_may_have_an_error_of_its_own(tmp_path):
    S.save(make(), tmp_path / "old.json")
    text = json.loads((tmp_path / "old.json").read_text())
    del text["metrics"]["top-1"]["error"]  # as files were before there was one
    (tmp_path / "old.json").write_text(json.dumps(text))
    assert S.load(tmp_path / "old.json") == make()
    figure = S.MetricScore(value=51.5, direction="higher", unit="%", n=200, error=3.5)
    S.save(make(metrics={"top-1": figure}), tmp_path / "new.json")
    assert S.load(tmp_path / "new.json").metrics["top-1"].error == 3.5


@pytest.mark.parametrize("change", ["identity", "protocol", "settings", "data_identity", "seed", "task", "partners"])
def test_the_key_depends_on_all_that_a_figure_depends_on(change):
    other = {
        "identity": "x",
        "protocol": 2,
        "settings": {"k": 10},
        "data_identity": "e",
        "seed": 1,
        "task": "knn2",
        "partners": ["t"],
    }
    assert make(**{change: other[change]}).key != make().key
    assert make(model="renamed", date="later", commit="d").key == make().key


def test_another_score_in_the_way_is_kept(tmp_path):
    file = tmp_path / "knn.seed0.json"
    S.save(make(), file)
    S.save(make(seconds=9.0), file)  # the same key: a repetition
    assert len(list(tmp_path.iterdir())) == 1
    S.save(make(settings={"k": 5}), file)
    kept = [path for path in tmp_path.iterdir() if ".before-" in path.name]
    assert len(kept) == 1 and S.load(kept[0]).settings == {"k": 20}
    assert S.load(file).settings == {"k": 5}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00\xff"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="x.json is not a score file") as error:
        S.load(file)
    assert "remove it" in str(error.value)


def test_reading_is_strict(tmp_path):
    plain = json.loads(make().model_dump_json())
    file = tmp_path / "x.json"
    for change in (
        {"format": 2},
        {"extra": 1},
        {"metrics": {"m": plain["metrics"]["top-1"] | {"direction": "up"}}},
        {"metrics": {"m": plain["metrics"]["top-1"] | {"value": "nan"}}},
    ):
        file.write_text(json.dumps(plain | change))
        with pytest.raises(UserError, match="is not a score file"):
            S.load(file)


def test_figures_of_two_protocols_under_one_name_are_refused(tmp_path):
    S.save(make(), tmp_path / "a" / "knn.seed0.json")
    S.save(make(model="b", protocol=2), tmp_path / "b" / "knn.seed0.json")
    with pytest.raises(UserError, match="'knn' was scored by knn protocol 1 for a and by knn protocol 2 for b"):
        S.load_folder(tmp_path)
    S.save(make(model="b"), tmp_path / "b" / "knn.seed0.json")
    assert len(S.load_folder(tmp_path)) == 2


def test_a_failure_takes_the_place_of_no_finished_score(tmp_path):
    file = tmp_path / "knn.seed0.json"
    S.save(make(), file)
    for change in ({}, {"data_identity": "absent"}):  # also of the same key
        where = S.save(make(error="no data set", metrics={}, **change), file)
        assert S.load(file) == make() and S.load(where).error == "no data set"
    assert S.load_folder(tmp_path) == [make()] and len(list(tmp_path.iterdir())) == 2  # not counted beside it
    assert S.recall([file], make().key) == make()
    assert [path.name for path in tmp_path.iterdir()] == ["knn.seed0.json"]  # it is there, so nothing failed


def test_a_success_ends_a_failure_and_keeps_what_was_finished(tmp_path):
    file = tmp_path / "knn.seed0.json"
    S.save(make(), file)
    S.save(make(error="broken", metrics={}, settings={"k": 5}), file)
    S.save(make(settings={"k": 5}), file)
    assert S.load(file).settings == {"k": 5}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[1].startswith("knn.seed0.json.before-")


def test_that_a_task_does_not_apply_takes_the_place_of_no_figures(tmp_path):
    file = tmp_path / "sam.seed0.json"
    nothing = make(not_applicable="no SAM weights", metrics={}, settings={"k": 5})
    S.save(nothing, file)
    assert S.load(file) == nothing
    S.save(make(), file)  # figures take its place
    S.save(nothing, file)
    assert S.load(file) == make()
    assert S.recall([file], nothing.key) == nothing and S.load(file) == make()


def test_a_kept_score_comes_back_with_its_examples(tmp_path):
    file, asked = tmp_path / "knn.seed0.json", [make(settings={"k": k}) for k in (3, 5, 7)]
    for score in asked:
        S.save(score, file)
        examples_file(file).write_bytes(bytes(score.settings["k"]))
    for score in (asked[0], asked[1], asked[0], asked[2]):
        assert S.recall([file], score.key) == S.load(file) == score
        assert examples_file(file).read_bytes() == bytes(score.settings["k"])
        assert len(list(tmp_path.iterdir())) == 6  # nothing is lost, nothing is doubled
    assert S.recall([file], make(settings={"k": 9}).key) is None and S.load(file) == asked[2]


def test_a_damaged_kept_score_stops_nothing(tmp_path):
    file = tmp_path / "knn.seed0.json"
    S.save(make(settings={"k": 5}), file)
    S.save(make(), file)
    file.with_name(f"{file.name}.before-29990101-000000").write_text("{")
    assert S.recall([file], make(settings={"k": 5}).key).settings == {"k": 5}


def test_a_score_under_another_name_of_its_model_ends_the_failure_under_this_one(tmp_path):
    places = [tmp_path / name / "knn.seed0.json" for name in ("old", "renamed")]
    S.save(make(), places[0])
    S.save(make(error="no data set", metrics={}), places[1])
    assert S.recall(places, make().key) == make() and S.load_folder(tmp_path) == [make()]
