"""Where weights are looked for, and what is said of files that cannot be used."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from teachers import weight_files
from teachers.errors import UserError
from teachers.features import has_values, identity_of
from teachers.weight_files import DTYPES, read_tensors, save_tensors


def test_a_path_may_be_relative_or_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pt").touch()
    assert weight_files.find("~/a.pt", of="x", names=()) == tmp_path / "a.pt"
    with pytest.raises(UserError, match="not there: .*b.pt"):
        weight_files.find("~/b.pt", of="x", names=())


@pytest.mark.parametrize("weights", ["hf:a/b", "wheel:x", "shipped:y", "./a.pt", "runs/a", "~/a", "/a/b"])
def test_what_says_where_it_is_is_no_tag(weights):
    assert weight_files.is_file_like(weights)


def test_tags_and_random_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not any(map(weight_files.is_file_like, ("webli", "dfn5b", "random", "laion2b_s34b_b79k")))


def test_the_hugging_face_cache_is_searched_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--repo" / "snapshots" / "abc"
    with pytest.raises(UserError, match=r"hf download some/repo --include 'w_\*'"):
        weight_files.find("hf:some/repo", of="x", names=("w_a.bin", "w_b.bin"))
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "w_b.bin").touch()
    assert weight_files.find("hf:some/repo", of="x", names=("w_a.bin", "w_b.bin")) == snapshot / "w_b.bin"


def test_a_wheel_is_searched_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "models" / "net.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert weight_files.find("wheel:some_weights", of="x", names=()) == package / "models" / "net.pth"
    with pytest.raises(UserError, match="pip install other-weights"):
        weight_files.find("wheel:other_weights", of="x", names=())


def test_tensors_are_read_from_both_kinds_of_file_and_wrappings_removed(tmp_path):
    tensors = {"a.weight": torch.ones(2, 3)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in tensors.items()}, "epoch": 3}, tmp_path / "a.pt"
    )
    for name in ("a.safetensors", "a.pt"):
        read = weight_files.read_tensors(tmp_path / name, of="x")
        assert list(read) == ["a.weight"] and torch.equal(read["a.weight"], tensors["a.weight"])


def test_a_file_that_would_run_code_or_holds_nothing_is_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    torch.save([torch.ones(1)], tmp_path / "none.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read"):
        weight_files.read_tensors(tmp_path / "module.pt", of="x")
    with pytest.raises(UserError, match="hold no tensors"):
        weight_files.read_tensors(tmp_path / "none.pt", of="x")
    with pytest.raises(UserError, match="cannot be read"):
        weight_files.read_tensors(tmp_path / "junk.safetensors", of="x")


# Tensors without values -------------------------------------------------------------------------------------------


def of_every_dtype() -> dict[str, torch.Tensor]:
    """Real tensors, in no order, with shapes that leave nothing aligned by chance."""
    tensors = {f"é.{name}": torch.ones(3, 1).to(dtype) for name, dtype in sorted(DTYPES.items())}
    return {"z": torch.tensor(2.0), **tensors, "none": torch.empty(0, 3), "a": torch.rand(5, 7).half()}


def without_values(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}


def assert_same_kind(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert {k: (t.shape, t.dtype) for k, t in got.items()} == {k: (t.shape, t.dtype) for k, t in wanted.items()}


def test_a_file_is_as_safetensors_would_write_it(tmp_path):
    tensors = of_every_dtype()
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    save_tensors({**tensors, "a": tensors["a"].T.clone().T}, tmp_path / "ours.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_a_hollow_file_has_the_header_and_the_length_of_the_real_one(kind, metadata, tmp_path):
    real, hollow = tmp_path / "real.safetensors", tmp_path / "hollow.safetensors"
    tensors = of_every_dtype()
    save_tensors(tensors, real, metadata)
    save_tensors(without_values(tensors, kind), hollow, metadata)
    header = 8 + int.from_bytes(real.read_bytes()[:8], "little")
    assert hollow.read_bytes()[:header] == real.read_bytes()[:header]
    assert hollow.stat().st_size == real.stat().st_size > header
    assert not any(tensor.any() for tensor in load_file(hollow).values())


@pytest.mark.parametrize("file", ["a.safetensors", "a.pt"])
def test_where_tensors_have_no_values_those_of_a_file_have_none(file, tmp_path):
    tensors, path = of_every_dtype(), tmp_path / file
    save_tensors(tensors, path) if file == "a.safetensors" else torch.save({"state_dict": tensors, "epoch": 3}, path)
    assert all(torch.equal(t, tensors[k]) for k, t in read_tensors(path, of="x").items())
    with FakeTensorMode() as mode:
        fakes = read_tensors(path, of="x")
        assert all(isinstance(t, FakeTensor) and t.fake_mode is mode and str(t.device) == "cpu" for t in fakes.values())
    with torch.device("meta"):
        metas = read_tensors(path, of="x")
    assert all(t.is_meta for t in metas.values())
    assert_same_kind(fakes, tensors)
    assert_same_kind(metas, tensors)


def test_more_than_any_memory_is_written_and_read_without_values(tmp_path):
    with FakeTensorMode():
        tensors = {"w": torch.empty(1_000_000, 100_000, dtype=torch.bfloat16)}
        save_tensors(tensors, tmp_path / "w.safetensors")
        assert_same_kind(read_tensors(tmp_path / "w.safetensors", of="x"), tensors)
    file = (tmp_path / "w.safetensors").stat()
    assert file.st_size > 2e11 and file.st_blocks * 512 < 1e5


def test_a_header_that_is_cut_short_is_refused_without_values_too(tmp_path):
    save_tensors({"a": torch.ones(100)}, tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", 300)
    with FakeTensorMode(), pytest.raises(UserError, match="cannot be read"):
        read_tensors(tmp_path / "a.safetensors", of="x")


def test_an_identity_counts_values_where_there_are_any():
    real = {"a": torch.ones(2, 3)}
    meta, fake = without_values(real, "meta"), without_values(real, "fake")
    assert [has_values(tensors["a"]) for tensors in (real, meta, fake)] == [True, False, False]
    assert not has_values(torch.nn.Parameter(fake["a"]))
    assert identity_of(meta) == identity_of(fake) != identity_of(real) != identity_of({"a": torch.zeros(2, 3)})


# Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_others_may_read_a_file_as_the_umask_allows(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        save_tensors({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors({"a": torch.ones(2)}, path)

    def fail(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"a": torch.zeros(2)}, path)
    assert list(tmp_path.iterdir()) == [path] and torch.equal(load_file(path)["a"], torch.ones(2))
