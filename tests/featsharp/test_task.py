"""The objective as the loop sees it: sizes, statistics, groups, determinism, state, the adapter it leaves."""

import json

import pytest
import torch
from PIL import Image

from featsharp import sharpen_pictures
from featsharp.config import SharpenerConfig
from featsharp.sharpener import build
from featsharp.task import SharpenObjective
from teachers.seeding import torch_rng
from tests.featsharp.toys import Pictures, random_teacher

CONFIG = {"views": {"jitters": 2}, "losses": {"uncertainty_width": 8}, "fusion": {"heads": 8, "layer_scale": 0.1}}
BUILT_FROM = {
    "encoder": "random",
    "weights": None,
    "options": {"patch": 8, "width": 32, "depth": 1, "image_size": [48, 64], "seed": 0},
}


def objective(tmp_path, seed: int = 0, **config) -> SharpenObjective:
    made = SharpenObjective(
        random_teacher(),
        SharpenerConfig.model_validate(CONFIG | config),
        seed=seed,
        cache=tmp_path / "cache",
        statistics_batches=3,
        say=lambda text: None,
        built_from=BUILT_FROM,
    )
    made.begin_stage(0, lambda: (Pictures(made.image_size, 4, n) for n in range(3)), "toys")
    return made


def train(made: SharpenObjective, steps: int, lr: float = 3e-3) -> list[float]:
    optimizer = torch.optim.NAdam(made.param_groups(lr, 0.0))
    losses = []
    for step in range(steps):
        total, _ = made.losses(made.model, Pictures(made.image_size, 4, 100 + step), step, torch_rng("step", step))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


def test_it_asks_for_one_size_from_which_views_are_cut(tmp_path):
    assert objective(tmp_path).sizes("low", 3) == [(120, 160)]
    assert objective(tmp_path, factor=3, views={"source_scale": 1}).sizes("low", 0) == [(144, 192)]


def test_statistics_make_the_teachers_features_unit_variance(tmp_path):
    made = objective(tmp_path)
    sight = made.see(Pictures(made.image_size, 8, 1).float(made.image_size), torch_rng("views"))
    assert sight.targets.shape == (2, 8, 32, 6, 8)
    assert 0.5 < sight.targets.var() < 1.5


def test_groups_cover_every_parameter_once_and_carry_their_rates(tmp_path):
    made = objective(tmp_path)
    groups = made.param_groups(1e-3, 0.05)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in made.model.parameters())
    assert all(group["lr"] == pytest.approx(1e-3 * group["lr_scale"]) for group in groups)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    upsampler = made.model.adapter.upsampler
    assert {scale[id(p)] for p in upsampler.jbu.parameters()} == {0.2}
    assert {scale[id(p)] for p in made.model.uncertainty.parameters()} == {0.02}
    assert decay[id(upsampler.fusion.attention.qkv.weight)] == 0.05
    assert decay[id(made.model.adapter.bias.table)] == decay[id(upsampler.fusion.gamma1)] == 0


def test_every_parameter_learns(tmp_path):
    made = objective(tmp_path)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    train(made, 3)
    still = [name for name, p in made.model.named_parameters() if torch.equal(before[name], p.detach())]
    assert not still


def test_the_same_seeds_train_the_same_sharpener_bit_for_bit(tmp_path):
    assert train(objective(tmp_path), 3) == train(objective(tmp_path), 3) != train(objective(tmp_path, seed=1), 3)


def test_training_raises_fidelity_on_held_out_images(tmp_path):
    made = objective(tmp_path, losses={"uncertainty": False}, downsampler={"kind": "simple"})
    heldout = [Pictures(made.image_size, 8, n) for n in (900, 901)]
    before = made.evaluate(heldout)
    assert before == made.evaluate(heldout)
    train(made, 40)
    after = made.evaluate(heldout)
    assert after["random/fidelity"] > 1.05 * before["random/fidelity"]
    assert set(after) == {"random/fidelity", "random/bilinear", "random/fidelity_raw"}


def test_state_carries_the_statistics_to_a_fresh_objective(tmp_path):
    made = objective(tmp_path)
    fresh = SharpenObjective(random_teacher(), made.config, cache=tmp_path)
    fresh.load_state(made.state())
    x = torch.rand(1, 32, 2, 3)
    assert torch.equal(fresh.model.adapter.phi_s(x), made.model.adapter.phi_s(x))


def test_the_adapter_it_leaves_sharpens_as_the_model_did(tmp_path):
    made = objective(tmp_path)
    train(made, 2)
    made.evaluate([Pictures(made.image_size, 2, 0)])
    made.artefact(tmp_path / "run" / "export")
    about = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert about["fidelity"]["fidelity"] > 0 and about["teacher"]["built_from"] == BUILT_FROM
    sharp = build(tmp_path / "run", made.encoder)
    image = torch.rand(1, 3, 96, 128, generator=torch_rng("image"))
    expected = made.model.adapter.upsampler(torch.zeros(1, 32, 6, 8), torch.zeros(1, 32, 12, 16), image)
    got = sharp.adapter.upsampler(torch.zeros(1, 32, 6, 8), torch.zeros(1, 32, 12, 16), image)
    assert torch.equal(expected.detach(), got)


def test_pictures_show_the_image_and_three_maps(tmp_path):
    made = objective(tmp_path)
    picture = made.pictures(Pictures(made.image_size, 2, 0))["sharpened"]
    assert picture.width > 3 * picture.height / 2


def test_the_command_sharpens_a_folder_and_leaves_out_what_it_cannot_read(tmp_path, capsys):
    made = objective(tmp_path)
    made.artefact(tmp_path / "run" / "export")
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (90, 60), "red").save(folder / "red.png")
    Image.new("L", (60, 90), 40).save(folder / "grey.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert sharpen_pictures.main([str(tmp_path / "run"), str(folder), "--out", str(out), "--device", "cpu"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["grey.png", "red.png"]
    said = capsys.readouterr()
    assert "2 of 3 pictures" in said.out and "broken.jpg: left out" in said.err
    assert sharpen_pictures.main([str(tmp_path / "nothing"), str(folder), "--out", str(out)]) == 2
    assert "no trained sharpener" in capsys.readouterr().err
