"""The student as RADIO's users call it: a released file's known answers, formats, windows, intermediate maps, texts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from teachers.catalogue import build
from teachers.errors import UserError
from teachers.radio import RadioOutput
from teachers.radio_hub import HubStudent
from teachers.radio_released import hub_checkpoint, write_checkpoint
from tests.conftest import ROOT
from tests.teachers.students import HEADS, encoder, images, student

EXAMPLE = ROOT.parent / "shared" / "data" / "radio_hub_example"


@pytest.fixture(scope="module")
def example():
    if not EXAMPLE.is_dir():
        pytest.skip(f"needs {EXAMPLE}: a checkpoint in the public layout, with what the public entry answers")
    return EXAMPLE / "checkpoint.pth.tar", load_file(EXAMPLE / "answers.safetensors")


@pytest.mark.parametrize("size", ["64x64", "96x160", "208x48", "256x256"])
def test_a_released_checkpoint_gives_the_public_entrys_answers(example, size):
    file, answers = example
    model = torch.hub.load(str(ROOT), "radio_model", str(file), adaptor_names=["clip", "siglip", "sam"], source="local")
    with torch.no_grad():
        said = model(answers[f"in_{size}"])
    assert list(said) == ["backbone", "clip", "siglip", "sam"]
    for name, output in said.items():
        for part, value in output._asdict().items():
            torch.testing.assert_close(value, answers[f"{name}.{part}_{size}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", ["64x64", "96x160"])
def test_a_released_checkpoint_gives_the_public_entrys_answers_in_windows(example, size):
    file, answers = example
    model = torch.hub.load(str(ROOT), "student", str(file), vitdet_window_size=2, source="local")
    with torch.no_grad():
        said = model(answers[f"in_{size}"])
    torch.testing.assert_close(said.summary, answers[f"window2.summary_{size}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(said.features, answers[f"window2.features_{size}"], rtol=0, atol=1e-4)


def test_radios_own_entry_gives_the_checkpoint_too(tmp_path):
    made, file = encoder(), tmp_path / "a.pth.tar"
    write_checkpoint(hub_checkpoint(made.model, made.config, 5), file)
    arguments = {"version": str(file), "progress": False, "return_checkpoint": True, "source": "local"}
    model, checkpoint = torch.hub.load(str(ROOT), "radio_model", **arguments)
    assert checkpoint["epoch"] == 5 and model.patch_size == 4
    HubStudent(made).save_pretrained(tmp_path / "folder")
    _, config = torch.hub.load(str(ROOT), "radio_model", **{**arguments, "version": str(tmp_path / "folder")})
    assert config["version"] == "student"
    with pytest.raises(UserError, match="no necks"):
        torch.hub.load(str(ROOT), "radio_model", str(file), neck_name="a", source="local")


def test_sizes_and_counts_are_told_as_radio_tells_them():
    model = HubStudent(encoder(), ["sam", "clip"], vitdet_window_size=2)
    assert (model.patch_size, model.max_resolution, model.preferred_resolution) == (4, 32, (16, 24))
    assert (model.window_size, model.min_resolution_step) == (2, 8)
    assert (model.num_cls_tokens, model.num_summary_tokens) == (4, 4 + 3)
    assert (model.embed_dim, model.summary_dim, len(model.blocks)) == (16, 32, 4)
    assert list(model.adaptors) == ["sam", "clip"] and model.adaptors["sam"].head_idx == 3
    assert model.get_nearest_supported_resolution(13, 1) == (16, 8)
    assert model.get_nearest_supported_resolution(999, 19) == (32, 16)
    with pytest.raises(UserError, match="windows of 2 patches") as caught:
        model(images(1, 3, 16, 12))
    assert caught.value.todo == "model.get_nearest_supported_resolution(16, 12)"


def test_a_head_of_twice_the_grid_answers_there_in_both_formats():
    model, batch = HubStudent(encoder(), ["sam"]), images(2, 3, 8, 12)
    maps, rows = model(batch, feature_fmt="NCHW")["sam"].features, model(batch)["sam"].features
    assert maps.shape == (2, 8, 4, 6) and rows.shape == (2, 24, 8)
    assert torch.equal(rows[:, 7], maps[:, :, 1, 1])


def test_one_adaptor_may_be_named_without_a_list():
    assert list(HubStudent(encoder(), "clip")(images(1, 3, 8, 8))) == ["backbone", "clip"]


def test_the_preprocessor_can_be_taken_outside():
    model, batch = HubStudent(encoder()), images(2, 3, 8, 12)
    before = model(batch)
    preprocess = model.make_preprocessor_external()
    assert not torch.allclose(model(batch).features, before.features, atol=1e-2)
    after = model(preprocess(batch))
    assert torch.equal(after.summary, before.summary) and torch.equal(after.features, before.features)


def test_without_its_preprocessor_a_student_is_still_saved_whole(tmp_path):
    model, batch = HubStudent(encoder(student(spectral=True))), images(1, 3, 8, 12)
    before = model(batch).features
    preprocess = model.make_preprocessor_external()
    model.save_pretrained(tmp_path)
    assert model.model.spec.spectral  # it goes on as it was
    model.switch_to_deploy()
    torch.testing.assert_close(model(preprocess(batch)).features, before)
    torch.testing.assert_close(HubStudent.from_pretrained(tmp_path)(batch).features, before)


def test_deployed_it_has_plain_weights_and_the_same_answers():
    model, batch = HubStudent(encoder(student(spectral=True, damp=0.3)), ["clip"]), images(2, 3, 16, 8)
    before, blocks = model(batch), model.blocks
    model.switch_to_deploy()
    assert model.blocks is not blocks and not model.model.spec.spectral
    assert set(model.blocks[0].state_dict()) == set(student().blocks[0].state_dict())
    for name, output in model(batch).items():
        torch.testing.assert_close(output.features, before[name].features)
    plain = model.model
    model.switch_to_deploy()
    assert model.model is plain


def test_frames_of_a_clip_share_their_positions_in_training():
    model = HubStudent(encoder(student(position_dropout=0.0)))
    clip = images(1, 3, 16, 12).expand(4, -1, -1, -1)
    model.model.train()
    apart = model(clip).features
    with model.cpe_video_mode(2):
        together = model(clip).features
    assert torch.equal(together[0], together[1]) and torch.equal(together[2], together[3])
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(apart[0], apart[1]) and not torch.equal(model(clip).features[0], model(clip).features[1])


# Intermediate maps ------------------------------------------------------------------------------------------------


def by_hand(model: HubStudent, batch: torch.Tensor) -> list[torch.Tensor]:
    """All tokens after every block."""
    x, out = model.model.patch_generator(model.model.input_conditioner(batch)), []
    for block in model.blocks:
        x = block(x)
        out.append(x)
    return out


def as_map(tokens: torch.Tensor, h: int) -> torch.Tensor:
    return tokens[:, 7:].mT.unflatten(2, (h, -1))


def test_intermediate_maps_are_the_tokens_after_the_blocks():
    model, batch = HubStudent(encoder()), images(2, 3, 16, 24)
    tokens = by_hand(model, batch)
    final, maps = model.forward_intermediates(batch, [1, -1])
    torch.testing.assert_close(maps, [as_map(tokens[1], 4), as_map(tokens[3], 4)])
    said = model(batch, feature_fmt="NCHW")
    torch.testing.assert_close(final.features, said.features)
    torch.testing.assert_close(final.summary, said.summary)
    last_two = model.forward_intermediates(batch, 2, intermediates_only=True, output_fmt="NLC")
    torch.testing.assert_close(last_two, [tokens[2][:, 7:], tokens[3][:, 7:]])
    assert len(model.forward_intermediates(batch, intermediates_only=True)) == 4


def test_prefix_tokens_come_with_the_maps_if_asked_for():
    model, batch = HubStudent(encoder()), images(2, 3, 16, 24)
    [item] = model.forward_intermediates(batch, [2], return_prefix_tokens=True, intermediates_only=True)
    assert isinstance(item, RadioOutput)
    torch.testing.assert_close(item.summary, by_hand(model, batch)[2][:, :7])
    torch.testing.assert_close(item.features, as_map(by_hand(model, batch)[2], 4))


def test_stopping_early_runs_no_later_block():
    model, batch = HubStudent(encoder()), images(1, 3, 16, 24)
    ran = []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    final, [only] = model.forward_intermediates(batch, [1], stop_early=True)
    assert ran == [0, 1] and torch.equal(final.features, only)
    ran.clear()
    model.forward_intermediates(batch, [1])
    assert ran == [0, 1, 2, 3]


def test_dense_aggregation_is_the_mean_since_the_block_before():
    model, batch = HubStudent(encoder()), images(1, 3, 16, 24)
    tokens = by_hand(model, batch)
    maps = model.forward_intermediates(batch, [2, 0, 3], aggregation="dense", intermediates_only=True)
    wanted = [(tokens[1] + tokens[2]) / 2, tokens[0], tokens[3]]
    torch.testing.assert_close(maps, [as_map(each, 4) for each in wanted])


def test_maps_are_normed_by_the_students_own_norm_where_it_has_one():
    batch = images(1, 3, 16, 24)
    without, having = HubStudent(encoder()), HubStudent(encoder(student(final_norm=True)))
    plain, normed = (without.forward_intermediates(batch, [1], norm=norm)[1][0] for norm in (False, True))
    assert torch.equal(plain, normed)
    final, [normed] = having.forward_intermediates(batch, [1], norm=True)
    torch.testing.assert_close(normed, as_map(having.model.norm(by_hand(having, batch)[1]), 4))
    torch.testing.assert_close(final.features, having(batch, feature_fmt="NCHW").features)


def test_intermediate_maps_of_windowed_blocks_are_in_the_order_of_the_image():
    model, batch = HubStudent(encoder(), vitdet_window_size=2), images(1, 3, 16, 24)
    seen = []
    model.blocks[0].register_forward_hook(lambda block, _, out: seen.append(out))
    [first] = model.forward_intermediates(batch, [0], intermediates_only=True, stop_early=True)
    windows = seen[0].unflatten(1, (2, 2)).unflatten(0, (2, 3))  # window rows and columns, then places inside
    torch.testing.assert_close(first[0], windows.permute(4, 0, 2, 1, 3).reshape(16, 4, 6))


@pytest.mark.parametrize(
    "mistake",
    [{"indices": [4]}, {"indices": []}, {"aggregation": "some"}, {"norm_alpha_scheme": "x"}, {"output_fmt": "NHWC"}],
)
def test_what_forward_intermediates_cannot_do_is_said(mistake):
    with pytest.raises(UserError, match="cannot give block|unknown"):
        HubStudent(encoder()).forward_intermediates(images(1, 3, 8, 8), **mistake)


# Texts and uploads ------------------------------------------------------------------------------------------------


def test_a_text_aligned_head_embeds_texts_as_its_teacher_does():
    head = HEADS["clip"].__class__(10, HEADS["clip"].spatial_mlp, 128, HEADS["clip"].summary_mlp)
    source = {"encoder": "tabletop_clip", "weights": None, "options": {}, "has_text": True}
    made = encoder(student(heads={**HEADS, "clip": head}), clip=source)
    adaptor = HubStudent(made, ["clip", "sam"]).adaptors["clip"]
    texts = ["a red ball", "a table with a cone"]
    tokens = adaptor.tokenizer(texts)
    raw, unit = adaptor.encode_text(tokens), adaptor.encode_text(tokens, normalize=True)
    torch.testing.assert_close(unit, F.normalize(raw, dim=-1))
    torch.testing.assert_close(unit, build("tabletop_clip").encode_text(texts))
    assert torch.equal(adaptor.encode_text(texts), raw) and raw.shape == (2, 128)
    with pytest.raises(UserError, match="no text tower"):
        HubStudent(made, ["sam"]).adaptors["sam"].tokenizer(texts)


def test_what_is_uploaded_names_no_adaptors(monkeypatch):
    model, seen = HubStudent(encoder(), ["clip"]), []
    monkeypatch.setattr(
        "huggingface_hub.PyTorchModelHubMixin.push_to_hub", lambda self, repo, **_: seen.append(self.adaptor_names)
    )
    model.push_to_hub("somebody/something")
    assert seen == [()] and model.adaptor_names == ("clip",)
