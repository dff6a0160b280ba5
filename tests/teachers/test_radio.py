"""The RADIO architecture against its description: patches, tokens, what heads read, and what a caller can ask for."""

from __future__ import annotations

import pytest
import torch

from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_spec import HeadSpec, RadioSpec
from teachers.seeding import seeded
from tests.teachers.radio_toys import MLP, SPEC, images, model


def test_patches_are_flattened_channel_by_channel_and_row_by_row():
    made = model(width=48, num_heads=2)
    generator = made.patch_generator
    with torch.no_grad():
        generator.embedder.weight.copy_(torch.eye(48))
        generator.positions.pos_embed.zero_()
    batch = images(2, 3, 8, 12)
    tokens = generator(batch)
    assert torch.equal(tokens[:, : made.first_patch], generator.tokens.expand(2, -1, -1))
    assert made.first_patch == 3 + SPEC.registers
    for i in range(2):
        for j in range(3):
            patch = batch[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            wanted = torch.cat([patch[:, c, y] for c in range(3) for y in range(4)], dim=1)
            assert torch.equal(tokens[:, made.first_patch + 3 * i + j], wanted)


def test_images_are_whitened_with_clips_mean_and_deviation():
    whitened = model().input_conditioner(images(1, 3, 4, 4))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    torch.testing.assert_close(whitened, (images(1, 3, 4, 4) - mean) / std)


def test_a_teacher_reads_its_own_summary_token_and_one_without_summary_leaves_its_token_out():
    made = model()
    out, tokens = made(images(2, 3, 16, 24)), made.tokens(images(2, 3, 16, 24))
    assert made.summary_slots == [0, 2] and made.summary_width == 32
    torch.testing.assert_close(out["backbone"].summary, torch.cat([tokens[:, 0], tokens[:, 2]], dim=1))
    torch.testing.assert_close(out["siglip"].summary, made.heads["siglip"]["summary"](tokens[:, 2]))
    assert out["sam"].summary is None and "summary" not in made.heads["sam"]
    assert [tuple(out[name].summary.shape) for name in ("clip", "siglip")] == [(2, 6), (2, 5)]


def test_features_are_maps_whose_cells_are_the_patches_in_reading_order():
    made = model()
    out, tokens = made(images(2, 3, 16, 24)), made.tokens(images(2, 3, 16, 24))
    assert {name: tuple(o.features.shape) for name, o in out.items()} == {
        "backbone": (2, 16, 4, 6), "clip": (2, 10, 4, 6), "sam": (2, 8, 4, 6), "siglip": (2, 7, 4, 6)
    }  # fmt: skip
    for i, j in ((0, 0), (1, 5), (3, 2)):
        cell = tokens[:, made.first_patch + 6 * i + j]
        torch.testing.assert_close(out["backbone"].features[:, :, i, j], cell)
        torch.testing.assert_close(out["clip"].features[:, :, i, j], made.heads["clip"]["spatial"](cell))


def test_answers_are_fp32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        out = model()(images(1, 3, 8, 8))
    assert all(o.features.dtype == torch.float32 for o in out.values())
    assert out["backbone"].summary.dtype == out["clip"].summary.dtype == torch.float32


def test_activation_checkpointing_changes_neither_answer_nor_gradient():
    def run(checkpointing: bool):
        made = model(activation_checkpointing=checkpointing, drop_path=0.4, position_dropout=0.5).train()
        with seeded("forward"):
            out = made(images(3, 3, 8, 12))
            loss = sum(o.features.square().mean() for o in out.values()) + out["clip"].summary.square().mean()
            loss.backward()
        return loss, {name: p.grad for name, p in made.named_parameters() if p.grad is not None}

    (plain, gradients), (kept, recomputed) = run(False), run(True)
    assert torch.equal(plain, kept) and gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-7)


def test_teachers_may_share_one_token_or_choose_theirs():
    heads = {**SPEC.heads, "sam": HeadSpec(8, MLP, 4, MLP, supervised=False)}
    one = model(heads=heads, token_per_teacher=False)
    out, tokens = one(images(2, 3, 8, 8)), one.tokens(images(2, 3, 8, 8))
    assert one.first_patch == 1 + SPEC.registers and one.summary_slots == [0]
    torch.testing.assert_close(out["backbone"].summary, tokens[:, 0])
    for name in heads:
        torch.testing.assert_close(out[name].summary, one.heads[name]["summary"](tokens[:, 0]))
    chosen = model(heads={**heads, "clip": HeadSpec(10, MLP, 6, MLP, token=2)})
    tokens = chosen.tokens(images(2, 3, 8, 8))
    assert chosen.summary_slots == [2]  # sam's is not supervised, and the other two have the same
    torch.testing.assert_close(
        chosen(images(2, 3, 8, 8))["clip"].summary, chosen.heads["clip"]["summary"](tokens[:, 2])
    )
    with pytest.raises(UserError, match="clip reads summary token 3, of 3"):
        model(heads={**heads, "clip": HeadSpec(10, MLP, 6, MLP, token=3)})


def test_heads_can_be_asked_for_by_name():
    made, batch = model(), images(2, 3, 8, 12)
    everything = made(batch)
    some = made(batch, heads={"siglip", "clip"})
    assert list(some) == ["backbone", "clip", "siglip"] and list(made(batch, heads=())) == ["backbone"]
    assert all(torch.equal(some[name].features, everything[name].features) for name in some)
    with pytest.raises(UserError, match="no such heads: .'dino'"):
        made(batch, heads=["dino", "clip"])


def test_a_frozen_trunk_gets_no_gradient_and_answers_the_same():
    made, batch = model().train(), images(2, 3, 32, 32)  # at the table's own grid nothing is drawn
    free, frozen = made(batch), made(batch, freeze_trunk=True)
    assert all(torch.equal(free[name].features, frozen[name].features) for name in free)
    assert not frozen["backbone"].summary.requires_grad
    sum(o.features.sum() + (0 if o.summary is None else o.summary.sum()) for o in frozen.values()).backward()
    with_gradient = {name.split(".")[0] for name, p in made.named_parameters() if p.grad is not None}
    assert with_gradient == {"heads"}


def test_intermediate_tokens_are_those_after_each_block():
    made, batch = model(depth=3, final_norm=True), images(2, 3, 8, 12)
    first, last = made.intermediates(batch, [0, -1])
    x = made.patch_generator(made.input_conditioner(batch))
    torch.testing.assert_close(first, made.blocks[0](x))
    torch.testing.assert_close(made.norm(last), made.tokens(batch))
    seen = []
    made.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(made.intermediates(batch, [0], stop_early=True)[0], first) and not seen
    assert torch.equal(made.intermediates(batch, [0])[0], first) and seen
    with pytest.raises(UserError, match="no blocks"):
        made.intermediates(batch, [3])


def test_a_swiglu_block_gates_the_first_half_of_one_matrix():
    made = model(mlp="swiglu", mlp_ratio=3.0, layer_scale=0.1)
    assert made.blocks[0].mlp.w12.weight.shape == (64, 16) and made.blocks[0].mlp.w3.weight.shape == (16, 32)
    weights, x = made.blocks[0].mlp.state_dict(), images(5, 16)
    hidden = x @ weights["w12.weight"].T + weights["w12.bias"]
    gate, value = hidden[:, :32], hidden[:, 32:]
    wanted = (gate / (1 + torch.exp(-gate)) * value) @ weights["w3.weight"].T + weights["w3.bias"]
    torch.testing.assert_close(made.blocks[0].mlp(x), wanted)
    assert RadioModel(made.spec).blocks[0].ls1.gamma.unique().tolist() == [pytest.approx(0.1)]


@pytest.mark.parametrize(("width", "ratio", "hidden"), [(1152, 4304 / 1152, 4304), (768, 4.0, 3072)])
def test_mlps_have_the_width_that_the_ratio_means(width, ratio, hidden):
    with torch.device("meta"):
        made = RadioModel(RadioSpec(14, width, 1, 16, 28, 0, {}, mlp_ratio=ratio, token_per_teacher=False))
    assert made.blocks[0].mlp.fc1.weight.shape == (hidden, width)


def test_descriptions_of_earlier_exports_are_read():
    old = {
        "patch": 4, "width": 16, "depth": 2, "num_heads": 2, "cpe_max": 32, "registers": 3, "head_hidden": 12,
        "head_blocks": 1, "stem": "linear", "position_dropout": 0.1, "drop_path": 0.0,
        "activation_checkpointing": False,
        "heads": {
            "clip": {"summary": 6, "spatial": 10}, "sam": {"summary": None, "spatial": 8},
            "siglip": {"summary": 5, "spatial": 7},
        },
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    spec = RadioSpec.from_dict(old)
    assert spec.heads["clip"] == SPEC.heads["clip"] and not spec.heads["sam"].supervised
    assert spec.summary_slots == [0, 2] and spec.position_dropout == 0.1
    assert RadioModel(spec).state_dict().keys() == model().state_dict().keys()
    assert RadioSpec.from_dict(spec.as_dict()) == spec
