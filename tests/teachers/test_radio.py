"""The RADIO architecture against its formulas: cropped positions, tokens, heads; and a student's files as encoders."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers.errors import UserError
from teachers.features import identity_of
from teachers.radio import RadioModel
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import CONFIG, FORMAT, WEIGHTS
from teachers.radio_hub import HubStudent
from teachers.radio_positions import PositionTable, random_position_crop
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded, torch_rng

MLP = MlpSpec(12, 1)
SPEC = RadioSpec(
    patch=4, width=16, depth=2, num_heads=2, cpe_max=32, registers=3,
    heads={"clip": HeadSpec(10, MLP, 6, MLP), "sam": HeadSpec(8, MLP), "siglip": HeadSpec(7, MLP, 5, MLP)},
)  # fmt: skip


def model(seed: int = 0, **changes) -> RadioModel:
    with seeded("model", seed):
        made = RadioModel(RadioSpec(**{**vars(SPEC), **changes}))
        for parameter in made.parameters():  # initial weights are so small that mistakes would hide
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch_rng("images", seed))


# Cropped position embedding -------------------------------------------------------------------------------------------


def test_crops_are_distributed_as_the_formulas_say():
    n = 20_000
    crops = random_position_crop(n, "cpu", torch_rng("crops")).numpy()
    # The formulas again, in numpy: s ~ U[√0.1, 1], log a ~ U[log 3/4, log 4/3], s_x = min(s·a, 1), s_y = min(s/a, 1)
    rng = np.random.default_rng(1)
    s, a = rng.uniform(math.sqrt(0.1), 1, n), np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), n))
    width, height = np.minimum(s * a, 1), np.minimum(s / a, 1)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    for got, wanted in zip(crops.T, (left, top, width, height)):
        assert _distance(got, wanted) < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov at p = 0.001
    assert _distance(crops[:, 2] / crops[:, 3], width / height) < 1.95 * math.sqrt(2 / n)  # and jointly
    assert _distance(crops[:, 2] * crops[:, 3], width * height) < 1.95 * math.sqrt(2 / n)
    assert (crops[:, :2] >= 0).all() and (crops[:, :2] + crops[:, 2:] <= 1 + 1e-6).all()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest gap between two empirical distribution functions."""
    points = np.concatenate([a, b])
    share = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(share[0] - share[1]).max())


def _bilinear(table: np.ndarray, y: float, x: float) -> np.ndarray:
    """One point of a G×G×D table at cell coordinates, edges repeated."""
    last = len(table) - 1
    y, x = min(max(y, 0), last), min(max(x, 0), last)
    top, left = min(int(y), last - 1), min(int(x), last - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * table[top, left] + fx * table[top, left + 1]
    lower = (1 - fx) * table[top + 1, left] + fx * table[top + 1, left + 1]
    return (1 - fy) * upper + fy * lower


def positions(cells: int = 6, dropout: float = 0.0) -> tuple[PositionTable, np.ndarray]:
    with seeded("positions"):
        table = PositionTable(cells, 5, dropout)
    return table, table.pos_embed.detach().double().numpy().reshape(cells, cells, 5)


@pytest.mark.parametrize("grid", [(3, 5), (7, 4), (1, 6), (6, 6)])
def test_a_crop_is_read_point_by_point_with_corners_on_corners(grid):
    table, values = positions()
    crops = torch.cat([random_position_crop(3, "cpu", torch_rng("read")), torch.tensor([[0.0, 0.0, 1.0, 1.0]])])
    got = table.read(crops, grid).detach().numpy()
    h, w = grid
    for one, (x, y, width, height) in zip(got, crops.tolist()):
        for i in range(h):
            for j in range(w):
                u, v = j / max(w - 1, 1), i / max(h - 1, 1)
                wanted = _bilinear(values, (y + v * height) * 5, (x + u * width) * 5)
                np.testing.assert_allclose(one[i * w + j], wanted, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 5), (9, 4), (2, 2), (6, 4), (6, 6)])
def test_outside_training_the_table_is_resized_to_the_longer_side_and_its_top_left_kept(grid):
    table, values = positions()
    table.eval()
    got = table(2, grid).detach().numpy()
    h, w = grid
    side = max(grid)
    assert got.shape == (1, h * w, 5)
    for i in range(h):
        for j in range(w):  # pixel centres on pixel centres, without antialiasing
            wanted = _bilinear(values, (i + 0.5) * 6 / side - 0.5, (j + 0.5) * 6 / side - 0.5)
            np.testing.assert_allclose(got[0, i * w + j], wanted, atol=1e-5)


def test_at_its_own_grid_the_table_is_read_as_it_is_in_training_too():
    table, values = positions()
    for mode in (True, False):
        assert np.allclose(table.train(mode)(2, (6, 6)).detach().numpy(), values.reshape(1, 36, 5))
    assert not torch.equal(*table.train()(2, (6, 5)))  # elsewhere every image has a crop of its own


def test_position_dropout_takes_all_positions_of_an_image_or_none_and_only_in_training():
    table, _ = positions(dropout=0.3)
    with seeded("dropout"):
        empty = (table.train()(4000, (2, 3)) == 0).flatten(1)
    assert (empty.all(1) | ~empty.any(1)).all()
    assert abs(empty.all(1).float().mean().item() - 0.3) < 0.03
    assert (table.eval()(1, (2, 3)) != 0).all()


def test_positions_are_fp32_also_under_autocast():
    table, _ = positions()
    crops = random_position_crop(2, "cpu", torch_rng("read"))
    with torch.autocast("cpu", torch.bfloat16):
        low = table.read(crops, (3, 4))
    assert low.dtype == torch.float32 and torch.equal(low, table.read(crops, (3, 4)))


# Tokens and heads -----------------------------------------------------------------------------------------------------


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


def test_a_head_is_the_second_mlp_version_with_its_names():
    head = model().heads["clip"]["spatial"]
    layers = ("fc1", "blocks.0.0", "blocks.0.2", "final.0", "final.2")
    assert set(head.state_dict()) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    weights, tokens = head.state_dict(), images(4, 16)

    def layer(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(name, x):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
        x = x * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    x = layer("fc1", tokens)
    x = x + layer("blocks.0.2", normed("blocks.0.0", x))
    torch.testing.assert_close(head(tokens), layer("final.2", normed("final.0", x)))


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


# A student on disk ----------------------------------------------------------------------------------------------------


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
