"""Shards: what is written is read back, the same bytes from any number of workers, and no tar that is not whole."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from eval.tabletop import shards
from eval.tabletop.__main__ import main
from eval.tabletop.render import render


def read(paths) -> list[dict]:
    import webdataset as wds

    return list(wds.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False))


def test_samples_come_back(tmp_path):
    paths = shards.write(tmp_path, 7, seed=5, size=48, split="val", per_shard=3, picture_format="png")
    assert [path.name for path in paths] == ["val-00000.tar", "val-00001.tar", "val-00002.tar"]
    samples = read(paths)
    assert len({sample["__key__"] for sample in samples}) == 7
    for index, sample in enumerate(samples):
        scene, labels = render(5, "val", index, 48), json.loads(sample["json"])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), scene.image)
        assert sample["txt"].decode() == scene.captions[0]
        assert labels["captions"] == scene.captions and labels["boxes"] == scene.boxes.tolist()
        assert (labels["class"], labels["kind"]) == (scene.label, scene.kind)
        assert render(*(labels[key] for key in ("seed", "split", "index")), 48).captions == labels["captions"]


def test_jpegs_are_close_to_the_picture(tmp_path):
    (path,) = shards.write(tmp_path, 1, seed=5)
    picture = np.asarray(Image.open(io.BytesIO(read([path])[0]["jpg"]))).astype(float)
    assert np.abs(picture - render(5, "train", 0).image).mean() < 3


def test_the_bytes_do_not_depend_on_the_workers(tmp_path, capsys):
    arguments = ["--scenes", "5", "--seed", "1", "--size", "32", "--per-shard", "2"]
    for workers in ("0", "1"):
        assert main(["shards", str(tmp_path / workers), *arguments, "--workers", workers]) == 0
    assert "5 scenes of 32×32 in 3 shards" in capsys.readouterr().out
    for path in (tmp_path / "0").iterdir():
        assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes()


def test_a_run_cut_short_leaves_only_whole_tars_and_is_repaired_by_the_same_command(tmp_path, monkeypatch):
    def stop(seed, split, index, size):
        if index == 3:
            raise KeyboardInterrupt
        return render(seed, split, index, size)

    monkeypatch.setattr(shards, "render", stop)
    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path, 4, seed=5, size=32, per_shard=2)
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.tar"]
    monkeypatch.undo()
    assert len(read(shards.write(tmp_path, 4, seed=5, size=32, per_shard=2))) == 4
