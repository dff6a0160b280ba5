"""The public hub's layout: a small checkpoint of it gives its known answers, and all comes back under its own name."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_layout import from_hub, spec_from_checkpoint, to_hub
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded, torch_rng

EXAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "radio_hub_example"
SIZES = ["64x64", "96x160", "208x48", "256x256"]
TOP_LEVEL = ("base_model", "input_conditioner", "_heads", "_feature_projections")
needs_example = pytest.mark.skipif(not EXAMPLE.is_dir(), reason="needs ../shared/data/radio_hub_example")


def checkpoint() -> tuple[dict, dict[str, torch.Tensor]]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(EXAMPLE / "checkpoint.pth.tar", "cpu", weights_only=True)
    return vars(loaded["args"]), loaded["state_dict"]


def imported() -> tuple[RadioModel, dict[str, torch.Tensor]]:
    args, state = checkpoint()
    spec = spec_from_checkpoint(args, state)
    model = RadioModel(spec)
    model.load_state_dict(from_hub(spec, state))
    return model.eval(), state


@needs_example
@pytest.mark.parametrize("size", SIZES)
def test_a_released_checkpoint_gives_its_known_answers(size):
    model, _ = imported()
    answers = load_file(EXAMPLE / "answers.safetensors")
    with torch.no_grad():
        out = model(answers[f"in_{size}"])
    assert list(out) == ["backbone", "clip", "siglip", "sam"]
    for name, (summary, features) in out.items():
        torch.testing.assert_close(summary, answers[f"{name}.summary_{size}"], atol=1e-4, rtol=0)
        torch.testing.assert_close(features.flatten(2).mT, answers[f"{name}.features_{size}"], atol=1e-4, rtol=0)


@needs_example
@pytest.mark.parametrize("size", SIZES[:2])
def test_in_windowed_mode_too(size):
    model, _ = imported()
    answers = load_file(EXAMPLE / "answers.safetensors")
    with torch.no_grad():
        summary, features = model(answers[f"in_{size}"], window=2)["backbone"]
        assert (summary - model(answers[f"in_{size}"])["backbone"].summary).abs().max() > 0.1
    torch.testing.assert_close(summary, answers[f"window2.summary_{size}"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.flatten(2).mT, answers[f"window2.features_{size}"], atol=1e-4, rtol=0)


@needs_example
def test_a_released_checkpoint_comes_back_tensor_by_tensor():
    model, state = imported()
    back = to_hub(model.spec, model.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


@needs_example
def test_its_description_is_read_off_tensors_and_arguments():
    args, state = checkpoint()
    spec = spec_from_checkpoint(args, state)
    assert spec == RadioSpec(
        patch=16, width=64, depth=8, num_heads=4, cpe_max=256, registers=2,
        heads={
            "clip": HeadSpec(40, MlpSpec(48, 2), 24, MlpSpec(48, 1)),
            "siglip": HeadSpec(36, MlpSpec(48), 20, MlpSpec(48, 0, "v1")),
            "sam": HeadSpec(32, MlpSpec(48, 0, "attention"), 28, MlpSpec(48), supervised=False),
        },
    )  # fmt: skip
    assert RadioSpec.from_dict(spec.as_dict()) == spec and spec.summary_slots == [0, 1]


RICH = RadioSpec(
    patch=4, width=32, depth=3, num_heads=4, cpe_max=32, registers=2, mlp="swiglu", mlp_ratio=3.0, layer_scale=1e-5,
    patch_bias=True, final_norm=True, mean=(0.5, 0.25, 0.125), std=(0.25, 0.5, 1.0),
    heads={
        "first": HeadSpec(6, MlpSpec(12, 2, "v1"), 5, MlpSpec(10, 1, "v1")),
        "finer": HeadSpec(8, MlpSpec(12, 1), None, None, supervised=False, up=2),
        "third": HeadSpec(7, MlpSpec(12, 0, "attention"), 4, MlpSpec(9, 2), token=1),
    },
)  # fmt: skip
ARGS = {
    "model_kwargs": {"num_heads": 4},
    "teachers": [
        {"name": "first"},
        {"name": "finer", "use_summary": False, "fd_upsample_factor": 2},
        {"name": "third", "token_slot": 1},
        {"name": "first", "use_summary": False},  # in a second partition: the first entry counts
    ],
}  # fmt: skip


def rich() -> RadioModel:
    with seeded("layout"):
        model = RadioModel(RICH)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def numbered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with heads numbered, and with version 1's inner layers in one row of (Linear, LayerNorm, ReLU)s."""
    out = {}
    for key, tensor in state.items():
        for place, name in enumerate(RICH.heads):
            key = key.replace(f".{name}.", f".{place}.")
        inner = re.search(r"inner\.(\d)\.(\d)", key)
        out[key.replace(inner[0], f"inner.{3 * int(inner[1]) + int(inner[2])}") if inner else key] = tensor
    return out


@pytest.mark.parametrize("written", [dict, numbered])
def test_every_option_survives_the_way_out_and_back(written):
    model = rich()
    state = written(to_hub(RICH, model.state_dict()))
    assert {key.split(".")[0] for key in state} == {*TOP_LEVEL} and "base_model.blocks.0.mlp.fc1.weight" in state
    assert ("_feature_projections.0.inner.3.weight" in state) == (written is numbered)
    spec = spec_from_checkpoint(ARGS, state)
    assert spec == RICH
    again = RadioModel(spec).eval()
    again.load_state_dict(from_hub(spec, state))
    images = torch.rand(2, 3, 16, 24, generator=torch_rng("images"))
    with torch.no_grad():
        wanted, got = model(images), again(images)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], atol=0, rtol=0)
    assert got["finer"].features.shape == (2, 8, 8, 12) and got["finer"].summary is None


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda state: state.update({"base_model.neck.weight": torch.ones(1)}), "base_model.neck.weight"),
        (lambda state: state.update({"_heads.dino.fc1.weight": torch.ones(1)}), "_heads.dino.fc1.weight"),
        (lambda state: state.update({"base_model.blocks.0.attn.qkv.parametrizations.weight.original": torch.ones(1)}),
         "reparametrised"),
        (lambda state: state.pop("base_model.patch_generator.pos_embed"), "no base_model.patch_generator.pos_embed"),
        (lambda state: state.pop("_heads.first.fc2.weight"), "first's summary head is of an unknown kind"),
    ],
)  # fmt: skip
def test_what_has_no_place_here_is_named(damage, text):
    state = to_hub(RICH, rich().state_dict())
    damage(state)
    with pytest.raises(UserError, match=text):
        from_hub(spec_from_checkpoint(ARGS, state), state)


def test_attention_heads_of_the_trunk_come_from_arguments_or_timms_widths():
    state = to_hub(RICH, rich().state_dict())
    with pytest.raises(UserError, match="how many attention heads"):
        spec_from_checkpoint({**ARGS, "model_kwargs": None}, state)
    narrow = RadioSpec(patch=4, width=192, depth=1, num_heads=3, cpe_max=16, registers=0, heads={})
    state = to_hub(narrow, RadioModel(narrow).state_dict())
    shared = {"cls_token_per_teacher": False}  # no teacher, and one token that nobody supervises
    with pytest.raises(UserError, match="no base_model"):
        spec_from_checkpoint(shared, {})
    assert spec_from_checkpoint({}, state) == narrow == replace(narrow, num_heads=3)
