"""Score files: written whole, read strictly, never lost, never mixed across protocols."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval import scores as S
from eval.resampling import hits, metric, percentage, ratio
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


def test_an_error_is_written_only_where_a_figure_has_one(tmp_path):
    S.save(make(), tmp_path / "old.json")
    assert "error" not in json.loads((tmp_path / "old.json").read_text())["metrics"]["top-1"]
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


# --- resampling ------------------------------------------------------------------------------------------------------


def test_the_spread_over_resamples_is_the_standard_error():
    right = np.random.default_rng(0).random(400) < 0.3
    score = metric(hits(right), percentage, "split", direction="higher", unit="%", chance=25.0)
    assert score.value == pytest.approx(100 * right.mean()) and score.n == 400
    binomial = 100 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert np.std(score.resamples) == pytest.approx(binomial, rel=0.2)


def test_models_are_judged_on_the_same_resamples():
    rows = np.random.default_rng(0).random((60, 2)) + 1

    def scored(identity):
        return metric(rows, ratio, identity, direction="lower", unit="").resamples

    assert scored("a") == scored("a") != scored("b")


def test_a_resample_without_a_value_leaves_no_resamples():
    rows = np.zeros((3, 2))
    rows[0] = 1  # most resamples of three pictures miss the only one that counts
    assert metric(rows, ratio, "s", direction="lower", unit="").resamples == []
