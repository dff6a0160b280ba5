"""Where weights are looked for, and what is said of files that cannot be used."""

import pytest
import torch
from safetensors.torch import save_file

from teachers import weight_files
from teachers.errors import UserError


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
