"""Folders of pictures → shards, and what `look` says of them."""

from __future__ import annotations

import json
import tarfile

import pytest
from PIL import Image
from shard_maker import encoded, jpeg, write_shards, write_tar

from radio_distill import tars
from radio_distill.look import look
from radio_distill.pack import brace, pack
from radio_distill.shard_commands import main
from teachers.errors import UserError


def members(*paths):
    found = {}
    for path in paths:
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, two of them bad, some with captions beside them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(10):
        (folder / f"pic{number}.JPG").write_bytes(jpeg(number))
    (folder / "bad.jpg").write_bytes(jpeg(0)[:300])
    (folder / "my.photo.v2.png").write_bytes(b"junk")
    (folder / "pic3.txt").write_text("a cat\nan animal\n")
    (folder / "notes.md").write_text("not a picture")
    return folder


def test_pictures_are_kept_byte_for_byte_and_bad_ones_left_out(folder, tmp_path):
    made = pack(folder, tmp_path / "out", per_shard=4, workers=2)
    assert [path.name for path in made.train] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert made.pictures == 10 and sorted(made.left_out) == ["bad.jpg", "my.photo.v2.png"]
    held = members(*made.train)
    for number in range(10):
        assert held[f"pic{number}.jpg"] == (folder / f"pic{number}.JPG").read_bytes()
    assert held["pic3.txt"] == b"a cat" and json.loads(held["pic3.json"])["captions"] == ["a cat", "an animal"]
    assert json.loads(held["pic4.json"]) == {"file": "pic4.JPG", "height": 40, "width": 48}
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [path.name for path in made.train]


def test_the_same_seed_packs_the_same_bytes_and_another_another_order(folder, tmp_path):
    first, again, other = (pack(folder, tmp_path / name, seed=seed) for name, seed in [("a", 0), ("b", 0), ("c", 1)])
    read = [made.train[0].read_bytes() for made in (first, again, other)]
    assert read[0] == read[1] != read[2]
    assert list(members(first.train[0])) != sorted(members(first.train[0]))


def test_held_out_pictures_are_exactly_as_many_and_never_trained_on(folder, tmp_path):
    made = pack(folder, tmp_path / "out", holdout=5, per_shard=3)
    assert [path.name for path in made.heldout] == ["heldout-000000.tar", "heldout-000001.tar"]
    keys = [{item.key for path in paths for item in tars.read(str(path))} for paths in (made.train, made.heldout)]
    assert len(keys[0]) == len(keys[1]) == 5 and not keys[0] & keys[1]


def test_max_side_shrinks_upright_and_leaves_small_pictures_alone(tmp_path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in" / "large.jpg").write_bytes(encoded(Image.new("RGB", (80, 40), "red"), exif=exif))
    (tmp_path / "in" / "small.jpg").write_bytes(jpeg(1, 30, 20))
    held = members(*pack(tmp_path / "in", tmp_path / "out", max_side=32).train)
    assert held["small.jpg"] == jpeg(1, 30, 20)
    assert json.loads(held["large.json"])["height"] == 32 and json.loads(held["large.json"])["width"] == 16


def test_class_folders_become_labels(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
        (tmp_path / "in" / name / "a.jpg").write_bytes(jpeg(1))
    held = members(*pack(tmp_path / "in", tmp_path / "out").train)
    assert held["cat_a.cls"] == b"0" and held["dog_a_.cls"] == b"1" and len(held) == 12
    assert {json.loads(held[name])["class"] for name in held if name.startswith("dog") and "json" in name} == {"dog"}


@pytest.mark.parametrize("kind", ["coco", "plain", "csv", "pipes"])
def test_captions_from_a_file(folder, tmp_path, kind):
    names = [f"pic{number}.JPG" for number in range(10)]
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": number, "caption": f"{kind} {number}\n"} for number in range(10)] * 2,
    }
    texts = {
        "coco": json.dumps(coco),
        "plain": json.dumps({f"pic{number}": f"plain {number}" for number in range(10)}),
        "csv": "title,filename\n" + "\n".join(f'"csv {number}",{name}' for number, name in enumerate(names)),
        "pipes": "image_name| comment\n" + "\n".join(f"{name}| pipes {number}" for number, name in enumerate(names)),
    }
    file = tmp_path / ("captions.csv" if kind in ("csv", "pipes") else "captions.json")
    file.write_text(texts[kind])
    held = members(*pack(folder, tmp_path / "out", captions=file).train)
    assert [held[f"pic{number}.txt"].decode() for number in range(10)] == [f"{kind} {number}" for number in range(10)]
    assert len(json.loads(held["pic5.json"])["captions"]) == (2 if kind == "coco" else 1)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "{}", '{"other.jpg": "a"}', '{"annotations": [{}], "images": []}'])
def test_captions_that_cannot_be_used_are_an_error(folder, tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match="caption"):
        pack(folder, tmp_path / "out", captions=tmp_path / "c.json")
    assert not (tmp_path / "out").exists()


def test_existing_shards_are_replaced_only_by_force_and_only_when_all_is_written(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    old = pack(folder, out, per_shard=2, holdout=2)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="already holds 5 shards .*\n.*--force"):
        pack(folder, out)
    with monkeypatch.context() as patch:
        patch.setattr("webdataset.writer.TarWriter.write", _full_disk)
        with pytest.raises(OSError, match="No space left"):
            pack(folder, out, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before and old.pictures == 8
    made = pack(folder, out, force=True)
    assert [path.name for path in out.iterdir()] == ["train-000000.tar"] == [path.name for path in made.train]


def _full_disk(*_):
    raise OSError(28, "No space left on device")


def test_the_command_prints_the_line_to_paste_and_the_pictures_left_out(folder, tmp_path, capsys):
    assert main(["pack", str(folder), str(tmp_path / "out"), "--per-shard", "2", "--holdout", "2"]) == 0
    said = capsys.readouterr().out
    assert f'shards: "{tmp_path}/out/train-{{000000..000003}}.tar"' in said and "left out: bad.jpg cannot be" in said
    assert tars.resolve(f"{tmp_path}/out/train-{{000000..000003}}.tar", "x")


def test_the_command_fails_with_one_message(folder, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"junk")
    cases = {
        ("pack", "nowhere", "out"): "there is no folder 'nowhere'",
        ("pack", str(tmp_path), str(tmp_path / "o"), "--holdout", "99"): "--holdout 99 leaves none of the 13 pictures",
        ("pack", str(tmp_path / "bad"), str(tmp_path / "o")): "left to train on: a.jpg: cannot be decoded",
        ("look", str(tmp_path / "x.tar")): "there is no shard",
    }
    for arguments, words in cases.items():
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not list((tmp_path / "o").glob("*"))


def test_brace_names_what_was_written():
    assert brace([f"d/train-00000{number}.tar" for number in range(1)]) == "d/train-000000.tar"
    assert brace([f"d/train-{number:06d}.tar" for number in range(12)]) == "d/train-{000000..000011}.tar"


def test_look_counts_pictures_sizes_and_faults_and_draws_a_sheet(tmp_path, capsys):
    pattern = write_shards(tmp_path, shards=2, samples=5)
    write_tar(tmp_path / "s-01.tar", {"a.jpg": jpeg(1, 90, 20), "b.jpg": b"junk", "c.txt": b"words"})
    seen = look(pattern)
    assert sum(seen.good.values()) == 6 and min(seen.sides) == (20, 90)
    assert [len(reasons) for reasons in seen.faults.values()] == [2]
    assert main(["look", pattern, "--sheet", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr().out
    assert "6 pictures in 2 shards" in said and "2 bad samples:" in said and "b: cannot be decoded" in said
    assert Image.open(tmp_path / "sheet.png").size == (6 * 132, 132)
    assert sum(look(pattern, limit=3).good.values()) == 3
