"""A student's files as encoders: what is loaded, what an adaptor is, and what is said of damaged ones."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers.errors import UserError
from teachers.features import identity_of
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import CONFIG, FORMAT, WEIGHTS
from teachers.radio_hub import HubStudent
from tests.teachers.radio_toys import images, model


@pytest.fixture
def export(tmp_path):
    """An export folder as `radio_distill.export` writes it, and the model in it."""
    made = model()
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    save_file(made.state_dict(), folder / WEIGHTS)
    source = {"encoder": "random", "weights": "random", "options": {"patch": 4, "width": 6}, "has_text": False}
    config = {
        "format": FORMAT, "licence": "none", "preferred_size": [16, 24], "spec": made.spec.as_dict(),
        "teachers": dict.fromkeys(made.heads, source),
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config))
    return folder, made


def test_a_student_is_loaded_from_its_run_or_its_export_folder(export):
    folder, made = export
    encoder = RadioEncoder.load(folder.parent)
    assert (encoder.name, encoder.patch_size, encoder.native_size) == ("run", 4, (16, 24))
    assert (encoder.dims.summary, encoder.dims.spatial, encoder.licence) == (32, 16, "none")
    out, wanted = encoder(images(2, 3, 8, 12)), made(images(2, 3, 8, 12))["backbone"]
    torch.testing.assert_close(out.summary, wanted.summary)
    torch.testing.assert_close(out.spatial, wanted.features)
    assert RadioEncoder.load(folder).identity == encoder.identity
    everything = encoder.everything(images(2, 3, 8, 12))
    assert list(everything) == ["backbone", "clip", "sam", "siglip"] == ["backbone", *encoder.adaptor_names]


def test_an_untrained_student_has_the_architecture_and_none_of_the_weights(export):
    folder, made = export
    a, same, other = (RadioEncoder.untrained(folder, seed=seed) for seed in (0, 0, 1))
    assert a.identity == same.identity != other.identity
    assert a.dims == RadioEncoder.load(folder).dims and a.model.spec == made.spec
    weights = a.model.state_dict()
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in weights.items()}
    assert weights["blocks.0.attn.qkv.weight"].std() < 0.03 and not weights["blocks.0.attn.qkv.bias"].any()


def test_an_adaptor_is_an_encoder_in_its_teachers_space(export):
    student = RadioEncoder.load(export[0])
    adaptors = [student.adaptor(name) for name in student.adaptor_names]
    batch = images(2, 3, 8, 12)
    for adaptor, (name, wanted) in zip(adaptors, list(student.everything(batch).items())[1:]):
        got = adaptor(batch)
        assert adaptor.name == f"run:{name}" and adaptor.patch_size == 4
        assert got.spatial.shape == (2, adaptor.dims.spatial, 2, 3) and torch.equal(got.spatial, wanted.spatial)
        assert (adaptor.dims.summary is None) == (got.summary is None)
        with pytest.raises(UserError, match="multiples of its patch size 4"):
            adaptor(images(1, 3, 9, 12))
    assert len({student.identity, *(adaptor.identity for adaptor in adaptors)}) == 4
    assert adaptors[0].teacher().dims.spatial == 6 and not adaptors[0].has_text
    with pytest.raises(UserError, match="no text tower"):
        adaptors[0].encode_text(["a cat"])
    with pytest.raises(UserError, match="no head 'dino'") as caught:
        student.adaptor("dino")
    assert caught.value.expected == "one of clip, sam, siglip"


def test_a_size_beyond_the_position_table_is_refused(export):
    student = RadioEncoder.load(export[0])
    assert student(images(1, 3, 32, 4)).spatial.shape == (1, 16, 8, 1)
    with pytest.raises(UserError, match="cannot take images of 36×4") as caught:
        student(images(1, 3, 36, 4))
    assert "at most 32 pixels" in caught.value.expected


def test_radios_calling_convention(export):
    encoder = RadioEncoder.load(export[0])
    plain, both = HubStudent(encoder), HubStudent(encoder, ["siglip", "sam"])
    batch = images(2, 3, 8, 12)
    summary, features = plain(batch)
    assert summary.shape == (2, plain.summary_dim) == (2, 32)
    assert features.shape == (2, 6, plain.embed_dim) == (2, 6, 16)
    maps = plain(batch, feature_fmt="NCHW").features
    assert maps.shape == (2, 16, 2, 3) and torch.equal(maps.flatten(2).mT, features)
    out = both(batch)
    assert list(out) == ["backbone", "siglip", "sam"] and out["sam"].summary is None
    assert out["siglip"].features.shape == (2, 6, 7)
    assert (plain.patch_size, plain.max_resolution, plain.min_resolution_step) == (4, 32, 4)
    assert (plain.num_cls_tokens, plain.num_summary_tokens, len(plain.blocks)) == (3, 6, 2)
    assert plain.get_nearest_supported_resolution(13, 1) == (12, 4)
    assert plain.get_nearest_supported_resolution(999, 15) == (32, 16)
    for mistake in (lambda: HubStudent(encoder, ["dino"]), lambda: plain(batch, feature_fmt="NHWC")):
        with pytest.raises(UserError, match="dino|NHWC"):
            mistake()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "holds no exported student"),
        (lambda folder: (folder / CONFIG).write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / CONFIG).write_text('{"format": "other/1"}'), "has format 'other/1'"),
        (lambda folder: (folder / WEIGHTS).unlink(), "does not hold the student"),
        (lambda folder: os.truncate(folder / WEIGHTS, 500), "does not hold the student"),
        (lambda folder: rename_a_tensor(folder / WEIGHTS), "does not hold the student"),
    ],
)
def test_a_damaged_export_says_what_is_wrong_and_what_to_type(export, damage, text):
    damage(export[0])
    with pytest.raises(UserError, match=text) as caught:
        RadioEncoder.load(export[0].parent)
    assert "other/1" in text or "cannot be read" in text or "python -m radio_distill.export" in caught.value.todo


def rename_a_tensor(file) -> None:
    weights = load_file(file)
    weights["blocks.7.mlp.fc1.weight"] = weights.pop("blocks.0.mlp.fc1.weight")
    save_file(weights, file)


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no such folder: runs/nothing_here"):
        RadioEncoder.load("runs/nothing_here")


def test_identity_follows_weights_and_architecture(export):
    folder, made = export
    before = RadioEncoder.load(folder).identity
    assert before == identity_of(made.state_dict(), made.spec.as_dict())
    with torch.no_grad():
        made.patch_generator.tokens[0, 0] += 1
    save_file(made.state_dict(), folder / WEIGHTS)
    assert RadioEncoder.load(folder).identity != before
