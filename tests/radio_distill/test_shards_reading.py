"""Patterns → shards, and tars → items with whatever is wrong said aloud."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from shard_maker import jpeg, write_shards, write_tar

from radio_distill import tars
from teachers.errors import UserError


def problems(path, **cut):
    return [item.problem for item in tars.read(str(path), **cut)]


def test_brace_ranges_globs_and_lists_name_the_same_shards(tmp_path):
    braces = write_shards(tmp_path, shards=3, samples=1)
    found = tars.resolve(braces, "streams.low.shards")
    assert [name[-7:] for name in found] == ["-00.tar", "-01.tar", "-02.tar"]
    assert tars.resolve(str(tmp_path / "*.tar"), "x") == found
    assert tars.resolve([found[0], str(tmp_path / "s-{01..02}.tar")], "x") == found


def test_addresses_expand_but_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(tars.shutil, "which", lambda program: f"/bin/{program}")
    assert tars.resolve("s3://bucket/{000..002}.tar", "x")[-1] == "s3://bucket/002.tar"
    assert tars.resolve("pipe:cat {1..2}.tar", "x") == ["pipe:cat 1.tar", "pipe:cat 2.tar"]


def test_missing_shards_are_told_with_the_folder_that_is_there(tmp_path):
    write_shards(tmp_path / "data", shards=1, samples=1)
    cases = {
        str(tmp_path / "data" / "s-{00..04}.tar"): "4 of the 5 shards",
        str(tmp_path / "data" / "*.tgz"): "no file matches",
        str(tmp_path / "dat" / "s-00.tar"): f"nearest folder, {tmp_path}, holds no tar files",
        str(tmp_path / "data"): "is a folder",
        str(tmp_path / "data" / "s-{00..04.tar"): "unbalanced braces",
        "s9://bucket/0.tar": "cannot read s9://",
        "pipes3://{0..2}.tar": "cannot read",
    }
    for pattern, words in cases.items():
        with pytest.raises(UserError, match="streams.low.shards") as caught:
            tars.resolve(pattern, "streams.low.shards")
        assert words in str(caught.value)
    with pytest.raises(UserError, match="radio_distill.shards pack"):
        tars.resolve(str(tmp_path / "none.tar"), "x")


def test_a_remote_reader_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(tars.shutil, "which", lambda program: None)
    with pytest.raises(UserError, match="needs the program 'aws'"):
        tars.resolve("s3://bucket/0.tar", "x")


def test_a_sample_is_its_best_picture_whatever_else_it_holds(tmp_path):
    members = {
        "a.txt": b"words",
        "a.png": b"mask",
        "a.jpg": b"photo",
        "__meta__/x.jpg": b"no",
        "b.JPEG": b"b",
        "c.json": b"",
    }
    items = list(tars.read(str(write_tar(tmp_path / "s.tar", members))))
    assert [(item.key, item.picture) for item in items] == [("a", b"photo"), ("b", b"b"), ("c", None)]
    assert "no picture among its members (json)" in items[2].problem


def test_parts_and_start_select_by_index(tmp_path):
    path = write_tar(tmp_path / "s.tar", {f"{number}.jpg": b"x" for number in range(10)})
    assert [item.index for item in tars.read(str(path), start=4, part=1, parts=3)] == [4, 7]
    parts = [item.key for part in range(3) for item in tars.read(str(path), part=part, parts=3)]
    assert sorted(parts) == [str(number) for number in range(10)]


@pytest.mark.parametrize("cut", [512 * 5 + 100, 512 * 6 + 700, 512 * 8])
def test_a_truncated_tar_yields_what_precedes_and_says_so(tmp_path, cut):
    whole = write_tar(tmp_path / "s.tar", {f"{number}.jpg": bytes(900) for number in range(6)}).read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[:cut])
    items = list(tars.read(str(tmp_path / "t.tar")))
    complete = (cut - 1) // (512 * 3) if cut % (512 * 3) else cut // (512 * 3)
    assert [item.key for item in items if item.picture] == [str(number) for number in range(complete)]
    assert items[-1].problem.startswith("broke off") and len(items) <= complete + 1
    # Read in parts, the same items come, each once: the fault too.
    parts = [item for part in range(2) for item in tars.read(str(tmp_path / "t.tar"), part=part, parts=2)]
    assert sorted(parts, key=lambda item: item.index) == items


def test_an_overwritten_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(write_tar(tmp_path / "s.tar", {f"{number}.jpg": bytes(900) for number in range(6)}).read_bytes())
    data[512 * 3 : 512 * 4] = b"\x07" * 512
    (tmp_path / "s.tar").write_bytes(data)
    assert problems(tmp_path / "s.tar") == [None, "broke off: invalid header at byte 1536"]


@pytest.mark.parametrize("opened", ["{}", "pipe:cat {}"])
@pytest.mark.parametrize("member", range(1, 6))
def test_a_lost_page_is_not_taken_for_the_end(tmp_path, member, opened):
    path = tmp_path / "s.tar"
    data = bytearray(write_tar(path, {f"{n}.jpg": bytes([n + 1]) * 5000 for n in range(6)}).read_bytes())
    step, header = 512 * 11, 512 * 11 * member
    for lost in (slice(header, header + 512), slice(header - 512, header + 3584)):  # a header; a page over it
        broken = data.copy()
        broken[lost] = bytes(lost.stop - lost.start)
        path.write_bytes(broken)
        items = list(tars.read(opened.format(path)))
        assert [item.key for item in items if item.picture] == [str(n) for n in range(member)]
        assert items[-1].problem.startswith("broke off"), (lost, step)
    if opened == "{}":  # header and contents together: what follows is sound, and still not taken without a word
        broken = data.copy()
        broken[header : header + step] = bytes(step)
        path.write_bytes(broken)
        assert problems(path)[-1].startswith("broke off: ") and "zeros" in problems(path)[-1]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_headers_for_all_members_and_long_names_are_no_lost_pages(tmp_path, kind):
    names = ["a" * 150 + ".jpg", "b.jpg", "c" * 200 + ".jpg"]
    with tarfile.open(tmp_path / "s.tar", "w", format=kind, pax_headers={"comment": "as git archive writes"}) as tar:
        for name in names:
            header = tarfile.TarInfo(name)
            header.size = 700
            tar.addfile(header, io.BytesIO(bytes(700)))
    found = [(item.key + ".jpg", item.problem) for item in tars.read(str(tmp_path / "s.tar"))]
    assert found == [(name, None) for name in names]


def test_tars_behind_each_other_are_read_as_one(tmp_path):
    parts = [write_tar(tmp_path / f"{n}.tar", {f"{n}.jpg": jpeg(n)}).read_bytes() for n in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    assert [(item.key, item.problem) for item in tars.read(str(tmp_path / "all.tar"))] == [
        (str(n), None) for n in range(3)
    ]
    (tmp_path / "long.tar").write_bytes(parts[0] + bytes(30_720))
    assert problems(tmp_path / "long.tar")[1].startswith("broke off: it ends at byte ")


def test_junk_empty_and_vanished_shards_are_items_too(tmp_path):
    (tmp_path / "junk.tar").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "nothing.tar").write_bytes(b"")
    write_tar(tmp_path / "empty.tar", {})
    assert problems(tmp_path / "junk.tar") == problems(tmp_path / "nothing.tar") == ["is not a tar archive"]
    assert problems(tmp_path / "empty.tar") == ["holds no samples"]
    assert problems(tmp_path / "gone.tar") == ["is gone"]


def test_pipes_and_compressed_tars_are_read_and_a_failing_pipe_is_told(tmp_path):
    path = write_tar(tmp_path / "s.tar", {f"{number}.jpg": jpeg(number) for number in range(3)})
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    keys = [[item.key for item in tars.read(name)] for name in (f"pipe:cat {path}", str(tmp_path / "s.tar.gz"))]
    assert keys == [["0", "1", "2"]] * 2
    assert [item.problem is not None for item in tars.read("pipe:exit 3")] == [True]
    assert len(list(tars.read(f"pipe:cat {path}; sleep 300"))) == 3  # and no waiting for the program to end
    half = [item.picture is not None for item in tars.read(f"pipe:head -c 2500 {path}")]
    assert half == [True, False]
