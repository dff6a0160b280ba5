"""A student in each of three layouts, written and read again: the same answers from every head; nothing unpickled."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from teachers.catalogue import build, locate
from teachers.errors import UserError
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import CONFIG, OURS, WEIGHTS, read_spec
from teachers.radio_hub import HubStudent
from teachers.radio_released import hub_args, hub_checkpoint, write_checkpoint
from teachers.radio_spec import HeadSpec, MlpSpec
from tests.teachers.students import PLAIN, assert_same_answers, encoder, images, student

OPTIONS = {
    "as it is": {},
    "one token, no registers": {"token_per_teacher": False, "registers": 0},
    "reparametrised, noisy, normed": {"spectral": True, "spectral_heads": True, "damp": 0.1, "final_norm": True},
    "other ratio and patch": {"mlp_ratio": 3.7, "patch": 8, "cpe_max": 64},
}
ONLY_OURS = {"conv stem": {"stem": "conv"}, "dinov2": {"mlp": "swiglu", "layer_scale": 1e-5, "patch_bias": True}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_student_survives_the_hubs_checkpoint_in_every_head(options, tmp_path):
    made = encoder(student(**options))
    file = tmp_path / "tiny.pth.tar"
    write_checkpoint(hub_checkpoint(made.model, made.config, 7), file)
    read = RadioEncoder.load(file)
    assert_same_answers(read, made)
    assert (read.name, read.native_size, read.licence) == ("tiny", (16, 24), "none")
    assert read.config["teachers"] == made.config["teachers"] and read.dims == made.dims
    assert read.model.spec.global_blocks == 2 and not list(tmp_path.glob(".*"))
    windowed = [HubStudent(student_, vitdet_window_size=2)(images(1, 3, 32, 16)) for student_ in (read, made)]
    torch.testing.assert_close(*[out.features for out in windowed], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [*OPTIONS.values(), *ONLY_OURS.values()], ids=[*OPTIONS, *ONLY_OURS])
def test_a_student_survives_the_hugging_face_folder(options, tmp_path):
    made = encoder(student(**options))
    made.card = "---\nlicense: other\n---\n# A student\n"
    HubStudent(made, ["clip"]).save_pretrained(tmp_path / "folder")
    back = HubStudent.from_pretrained(tmp_path / "folder")
    assert back.adaptor_names == ("clip",)
    assert HubStudent.from_pretrained(tmp_path / "folder", adaptor_names=[]).adaptors == {}
    assert_same_answers(back.encoder, made)
    assert_same_answers(RadioEncoder.load(tmp_path / "folder"), made)
    assert (tmp_path / "folder" / "README.md").read_text() == made.card == back.encoder.card


def test_a_folder_has_radios_names_and_fields(tmp_path):
    HubStudent(encoder(), []).save_pretrained(tmp_path)
    keys = load_file(tmp_path / WEIGHTS).keys()
    assert {key.split(".")[1] for key in keys} == {"model", "input_conditioner", "adaptors"}
    assert "radio_model.adaptors.dino.head_mlp.inner.1.0.weight" in keys
    assert "radio_model.model.patch_generator.cls_token.token" in keys
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["patch_size"], config["max_resolution"], config["preferred_resolution"]) == (4, 32, [16, 24])
    assert config["adaptor_names"] == [] and config["args"]["model_kwargs"]["patch_size"] == 4
    assert config["adaptor_configs"]["sam"] == {
        "head_idx": 3,
        "feature": {"input_dim": 16, "hidden_dim": 12, "output_dim": 8, "num_inner": 1, "upsample_factor": 2},
    }
    assert config["adaptor_configs"]["clip"]["summary"]["output_dim"] == 6
    assert "tags:" in (tmp_path / "README.md").read_text()  # a card of its own where there was none


def test_a_folder_of_a_released_radio_has_args_only(tmp_path):
    made = encoder(student(heads={name: head for name, head in student().spec.heads.items() if name != "sam"}))
    HubStudent(made).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({key: config[key] for key in ("args", "version", "adaptor_configs")}))
    weights = load_file(tmp_path / WEIGHTS)
    save_file({**weights, "radio_model.summary_idxs": torch.tensor([0, 1])}, tmp_path / WEIGHTS)
    assert_same_answers(RadioEncoder.load(tmp_path), made)
    assert read_spec(tmp_path)[0].width == 16


def test_timm_builds_the_trunk_that_args_describe():
    """The hub makes its trunk with `timm.create_model(args.model, **args.model_kwargs)`: that trunk must be ours."""
    made = student(mlp_ratio=3.7)
    checkpoint = hub_checkpoint(made, encoder(made).config, 1)
    args, state = checkpoint["args"], checkpoint["state_dict"]
    trunk = timm.create_model(args.model, **args.model_kwargs).eval()
    prefix = "base_model.blocks."
    trunk.blocks.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    assert trunk.patch_embed.patch_size == (4, 4)
    batch = images(2, 3, 16, 24)
    with torch.no_grad():
        tokens = trunk.blocks(made.patch_generator(made.input_conditioner(batch)))
    torch.testing.assert_close(tokens, made.tokens(batch), rtol=1e-5, atol=1e-5)
    assert state["base_model.patch_generator.pos_embed"].shape == (1, 64, 16)
    assert state["base_model.patch_generator.cls_token.token"].shape == (4 + 3, 16)
    assert state["base_model.patch_generator.embedder.weight"].shape == (16, 48)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_args_are_those_that_the_public_entry_was_tried_with():
    spec = replace(student().spec, patch=16, width=768, depth=12, num_heads=12, cpe_max=2048)
    args = hub_args(spec)
    assert (args["model"], args["model_kwargs"]) == ("vit_base_patch16_224", {})
    assert hub_args(replace(spec, patch=14))["model_kwargs"] == {"patch_size": 14}
    assert hub_args(replace(spec, depth=8))["model_kwargs"] == {"embed_dim": 768, "depth": 8, "num_heads": 12}
    assert args["teachers"][1] == {
        "name": "siglip", "type": "generic", "use_summary": True, "mlp_version": "v1", "spatial_mlp_version": "attn"
    }  # fmt: skip
    assert args["teachers"][3]["use_summary"] is False and args["teachers"][3]["fd_upsample_factor"] == 2
    assert not args["spectral_reparam"] and args["damp"] is None and args["cpe_num_registers"] == 3


def test_every_teacher_has_a_summary_head_in_the_hubs_file_and_an_empty_one_is_taken_out_again(tmp_path):
    made = encoder()
    checkpoint = hub_checkpoint(made.model, made.config, 1)
    assert checkpoint[OURS]["without_summary"] == ["sam"] and "_heads.sam.final.2.weight" in checkpoint["state_dict"]
    write_checkpoint(checkpoint, tmp_path / "a.pth.tar")
    assert RadioEncoder.load(tmp_path / "a.pth.tar").model.spec.heads["sam"].summary is None


REFUSED = {
    "stem": ({"stem": "conv"}, "student.stem=linear"),
    "bias": ({"patch_bias": True}, "student.patch_bias=false"),
    "swiglu": ({"mlp": "swiglu"}, "student.mlp=gelu"),
    "scale": ({"layer_scale": 1e-5}, "student.layer_scale=null"),
    "v1 features": ({"heads": {"clip": HeadSpec(4, MlpSpec(8, 0, "v1"))}}, "teachers.clip.head.features=v2"),
    "prefix": ({"heads": {"sam": HeadSpec(4, PLAIN), "sam3": HeadSpec(4, PLAIN)}}, "another name than sam3"),
    "number": ({"heads": {"10": HeadSpec(4, PLAIN)}}, "another name than 10"),
}


@pytest.mark.parametrize(("changes", "key"), REFUSED.values(), ids=REFUSED)
def test_what_the_public_hub_cannot_load_is_refused_by_the_recipes_key(changes, key):
    spec = replace(student().spec, **changes)
    with pytest.raises(UserError, match="the public RADIO hub cannot load") as caught:
        hub_args(spec)
    assert key in caught.value.expected


def test_names_with_dots_are_refused():
    with pytest.raises(UserError, match="with a dot, a.b"):
        hub_args(replace(student().spec, heads={"a.b": HeadSpec(4, PLAIN)}))


# Reading what others wrote ----------------------------------------------------------------------------------------


class Danger:
    """What a malicious checkpoint would hold."""

    def __reduce__(self):
        return (os.mkdir, (self.place,))


def test_a_checkpoint_is_read_without_running_what_is_in_it(tmp_path):
    danger = Danger()
    danger.place = str(tmp_path / "made by the checkpoint")
    torch.save({"args": argparse.Namespace(a=danger), "state_dict": {}}, tmp_path / "evil.pth.tar")
    with pytest.raises(UserError, match="evil.pth.tar cannot be read"):
        RadioEncoder.load(tmp_path / "evil.pth.tar")
    assert not Path(danger.place).exists()
    with pytest.raises(FileNotFoundError):
        pickle.loads(b"cposix\nmkdir\n(V/no/such/place\ntR.")  # the same trick does work where pickle is trusted


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"model": {}}, "is no RADIO checkpoint"),
        ({"args": argparse.Namespace(), "state_dict": {"a": torch.zeros(1)}}, "has no base_model.patch_generator"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_radio_says_what_is_wrong(tmp_path, content, text):
    file = tmp_path / "a.pth.tar"
    torch.save(content, file)
    if content is None:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=text):
        RadioEncoder.load(file)
    with pytest.raises(UserError, match="no such file"):
        RadioEncoder.load(tmp_path / "b.pth.tar")


def test_averaged_weights_are_the_ones_that_are_read(tmp_path):
    a, b = encoder(student(0)), encoder(student(1))
    checkpoint = hub_checkpoint(a.model, a.config, 1)
    checkpoint["state_dict_ema"] = hub_checkpoint(b.model, b.config, 1)["state_dict"]
    write_checkpoint(checkpoint, tmp_path / "a.pth.tar")
    assert_same_answers(RadioEncoder.load(tmp_path / "a.pth.tar"), b)


def test_a_checkpoint_is_a_teacher_of_the_catalogue(tmp_path):
    made, file = encoder(), tmp_path / "a.pth.tar"
    write_checkpoint(hub_checkpoint(made.model, made.config, 1), file)
    assert locate("radio", str(file)) == str(file)
    batch = images(1, 3, 16, 24)
    torch.testing.assert_close(build("radio", weights=str(file))(batch).spatial, made(batch).spatial)
    head = build("radio", weights=str(file), adaptor="sam", image_size=[8, 16])
    assert head(batch).spatial.shape == (1, 8, 8, 12) and head.grid((16, 24)) == (8, 12) and head.patch_size == 2
    structure = build("radio", config=str(file), meta=True)
    assert structure.dims == made.dims and next(structure.parameters()).device.type == "meta"


def test_the_teachers_of_a_released_checkpoint_are_found_in_the_catalogue(tmp_path):
    made, file = encoder(), tmp_path / "a.pth.tar"
    checkpoint = hub_checkpoint(made.model, made.config, 1)
    del checkpoint[OURS]
    clip, siglip, *_ = checkpoint["args"].teachers
    clip.update(type="open_clip", model="ViT-H-14-378-quickgelu", pretrained="dfn5b")
    siglip.update(type="siglip2", model="siglip2-g-384")
    write_checkpoint(checkpoint, file)
    read = RadioEncoder.load(file)
    teachers = read.config["teachers"]
    assert (teachers["clip"]["encoder"], teachers["clip"]["weights"]) == ("open_clip", "dfn5b")
    assert teachers["siglip"]["encoder"] == "siglip2_g" and not teachers["sam"]["has_text"]
    assert read.adaptor("clip").has_text and not read.adaptor("dino").has_text
    assert read.native_size == (32, 32)
    assert read.model.spec.heads["sam"].summary == 1  # without our note the empty head cannot be known
