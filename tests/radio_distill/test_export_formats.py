"""A trained run in the four formats, and an export in the other three: the same answers everywhere."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from trial import Trial

from radio_distill import checkpoint, export
from radio_distill.onnx_file import Graph, write_onnx
from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import load_checkpoint
from teachers.radio_hub import HubStudent
from tests.conftest import ROOT
from tests.teachers.students import assert_same_answers, encoder, images, student


@pytest.fixture(scope="module")
def rich(tiny_recipe, tmp_path_factory):
    """A run of three steps with all that an export must take out: reparametrisation, noise, averages, balances."""
    folder = tmp_path_factory.mktemp("rich")
    recipe = tiny_recipe(folder / "run")
    recipe["student"] |= {"spectral": True, "spectral_heads": True, "damp": 0.05}
    recipe["student"]["heads"] = {"summary": "v1", "blocks": 1}
    recipe["teachers"]["a"]["head"] = {"features": "attention"}
    recipe["teachers"]["b"] |= {"head": {"up": 2}, "summary_weight": 0}
    recipe["optim"] |= {"ema": 0.5}
    recipe["loss"] = {"balance": "uncertainty"}
    recipe["stages"] = [{"steps": 3}]
    recipe["output"] |= {"heldout": 0}
    made = Trial(recipe, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radio_distill.curves.draw", lambda run: None)
        assert made.train() == 0
    return made


def run_export(capsys, *arguments: object) -> str:
    """The command's last line."""
    assert export.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_the_average_is_exported_plain_and_in_the_teachers_spaces(rich):
    said = RadioEncoder.load(rich.run).everything(images(2, 3, 32, 48))
    objective, step = export._objective(rich.run)
    state = load_file(checkpoint.latest(rich.run) / checkpoint.TEACHERS)
    weights = {key.removeprefix("ema."): value for key, value in state.items() if key.startswith("ema.")}
    del weights["updates"]
    averaged = RadioModel(objective.model.spec).eval()
    averaged.load_state_dict({key: value for key, value in weights.items() if not key.startswith("balance.")})
    raw = averaged(images(2, 3, 32, 48))
    assert step == 3 and said["b"].spatial.shape[-2:] == (8, 12) and said["b"].summary is None
    torch.testing.assert_close(said["backbone"].summary, raw["backbone"].summary, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(said["a"].summary, raw["a"].summary, rtol=1e-5, atol=1e-5)
    for name, teacher in objective.teachers.items():
        wanted = teacher.phi_s.inverse(raw[name].features)
        torch.testing.assert_close(said[name].spatial, wanted, rtol=1e-5, atol=1e-5)
    trained = objective.model.eval()(images(2, 3, 32, 48))["backbone"].features
    assert not torch.allclose(trained, raw["backbone"].features, atol=1e-4)  # the average is not the last weights
    keys = load_file(rich.run / "export" / "model.safetensors").keys()
    assert not any(".parametrizations." in key or "balance" in key for key in keys)


@pytest.mark.parametrize("source", ["run", "run/export"])
def test_hub_and_hugging_face_answer_as_our_own_layout(rich, source, capsys, tmp_path):
    ours = RadioEncoder.load(rich.run)
    said = run_export(capsys, rich.run.parent / source, "--format", "hub", "--out", tmp_path / "made" / "a.pth.tar")
    assert said.startswith(f"{tmp_path}/made/a.pth.tar (")
    assert_same_answers(RadioEncoder.load(tmp_path / "made" / "a.pth.tar"), ours)
    run_export(capsys, rich.run.parent / source, "--format", "hf", "--out", tmp_path / "folder", "--adaptors", "b")
    folder = HubStudent.from_pretrained(tmp_path / "folder")
    assert folder.adaptor_names == ("b",)
    assert_same_answers(folder.encoder, ours)
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "3 optimiser steps" in card
    back = run_export(capsys, tmp_path / "folder", "--out", tmp_path / "back")
    assert back == f"{tmp_path}/back (from {tmp_path}/folder)"
    assert_same_answers(RadioEncoder.load(tmp_path / "back"), ours, tolerance=0)


def test_formats_lie_beside_the_checkpoints_unless_told_otherwise(rich, capsys):
    assert run_export(capsys, rich.run, "--format", "hub") == (
        f"{rich.run}/student.pth.tar (step 3; there the features of a come with feature_fmt='NLC' only; "
        "there its windowed mode needs 8 blocks, and this has 2)"
    )
    assert load_checkpoint(rich.run / "student.pth.tar")["epoch"] == 3
    assert run_export(capsys, rich.run / "export", "--format", "hf").startswith(f"{rich.run}/hf (")
    assert "HubStudent.from_pretrained" not in (rich.run / "hf" / "README.md").read_text()  # the card that was there
    assert run_export(capsys, rich.run, "--format", "hf") == f"{rich.run}/hf (step 3)"
    assert f'HubStudent.from_pretrained("{rich.run}/hf", adaptor_names=' in (rich.run / "hf" / "README.md").read_text()
    assert not list(rich.run.glob(".*tmp")) and not list(rich.run.glob(".*old"))


def test_our_exports_go_through_torch_hub_in_every_layout(rich, capsys, tmp_path):
    run_export(capsys, rich.run, "--format", "hub", "--out", tmp_path / "a.pth.tar")
    run_export(capsys, rich.run, "--format", "hf", "--out", tmp_path / "hf")
    said = []
    for place in (rich.run, tmp_path / "a.pth.tar", tmp_path / "hf"):
        model = torch.hub.load(str(ROOT), "student", str(place), adaptor_names=["a", "b"], source="local")
        said.append(model(images(1, 3, 32, 48)))
    for other in said[1:]:
        for name, output in other.items():
            torch.testing.assert_close(output.features, said[0][name].features, rtol=1e-5, atol=1e-5)


# ONNX -------------------------------------------------------------------------------------------------------------


def onnx_session(file):
    return pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])


def test_onnx_answers_as_torch_in_every_head_and_batch(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    made = encoder(student(final_norm=True, depth=2))
    export.write_safetensors(made, tmp_path / "export")
    arguments = ["--format", "onnx", "--size", 16, 24, "--adaptors", "clip", "siglip", "sam"]
    told = run_export(capsys, tmp_path / "export", *arguments)
    assert told.startswith(f"{tmp_path}/student.onnx (") and "16×24 pixels" in told and "onnxruntime agrees to" in told
    session = onnx_session(tmp_path / "student.onnx")
    names = [output.name for output in session.get_outputs()]
    heads = ["clip_summary", "clip_features", "siglip_summary", "siglip_features", "sam_features"]
    assert names == ["summary", "features", *heads]
    assert json.loads(session.get_modelmeta().custom_metadata_map["radio-distill"])["size"] == [16, 24]
    for batch in (1, 5):
        pictures = images(batch, 3, 16, 24)
        said, seen = dict(zip(names, session.run(None, {"images": pictures.numpy()}))), made.everything(pictures)
        for name, value in said.items():
            head, _, part = name.rpartition("_")
            wanted = seen[head or "backbone"]
            wanted = wanted.summary if part == "summary" else wanted.spatial
            torch.testing.assert_close(torch.from_numpy(value), wanted, rtol=1e-4, atol=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"student.onnx", "export"}


def test_a_graph_that_onnxruntime_runs_otherwise_is_not_written(monkeypatch, tmp_path):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("radio_distill.onnx_file._translate", lambda graph, size, file: file.write_text("a graph"))
    made = encoder()

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, _, feeds):
            out = Graph(made, made.adaptor_names)(torch.from_numpy(feeds["images"]))
            return [value.numpy() + 1e-3 for value in out]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    with pytest.raises(RuntimeError, match="answers otherwise than torch"):
        write_onnx(made, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format", "hub", "--adaptors", "a"], "--adaptors does not go with --format hub"),
        (["--format", "hf", "--size", "32"], "--size 32 does not go with --format hf"),
        (["--format", "onnx", "--size", "1", "2", "3"], "--size 1 2 3 is no image size"),
        (["--format", "onnx", "--size", "30"], "cannot take images of 30×30"),
        (["--format", "onnx", "--adaptors", "c"], "has no head 'c'"),
        (["--format", "hf", "--adaptors", "c"], "has no head 'c'"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_leave_nothing(rich, capsys, arguments, text, tmp_path):
    assert export.main([str(rich.run / "export"), *arguments, "--out", str(tmp_path / "out")]) == 2
    assert text in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_student_that_the_hub_cannot_load_is_refused_and_leaves_nothing(tmp_path, capsys):
    made = encoder(student(stem="conv"))
    export.write_safetensors(made, tmp_path / "conv")
    assert export.main([str(tmp_path / "conv"), "--format", "hub"]) == 2
    assert "student.stem=linear" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["conv"]
    with pytest.raises(UserError, match="is an export already"):
        export.export(tmp_path / "conv", out=tmp_path / "conv")


def test_onnx_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="onnx and onnxscript, which are not installed") as caught:
        write_onnx(encoder(), tmp_path / "a.onnx")
    assert "radio-distill[onnx]" in caught.value.todo
