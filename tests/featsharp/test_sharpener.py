"""The sharpener as an encoder: shapes, one call, chunks, files, the errors of a wrong teacher or size."""

import json

import pytest
import torch

from featsharp.adapter import Adapter
from featsharp.config import SharpenerConfig
from featsharp.sharpener import Sharpener, build, load, missing
from featsharp.tiles import cut, look, shrink, stitch
from featsharp.upsamplers import UPSAMPLERS
from teachers.errors import UserError
from teachers.phi_s import Moments, fit
from teachers.seeding import seeded, torch_rng
from tests.featsharp.toys import Counting, random_teacher


def images(height: int = 96, width: int = 128, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch_rng("images"))


def sharpener(teacher=None, **config) -> Sharpener:
    """With fitted statistics and visible residual branches."""
    teacher = teacher or random_teacher()
    config = SharpenerConfig.model_validate({"fusion": {"heads": 8, "layer_scale": 0.3}} | config)
    with seeded("adapter"):
        adapter = Adapter(config, teacher)
    moments = Moments(teacher.dims.spatial)
    moments.update(teacher(torch.rand(8, 3, *teacher.native_size, generator=torch_rng("statistics"))).spatial)
    adapter.phi_s.load_state_dict(fit(moments).state_dict())
    return Sharpener(teacher, config, adapter)


@pytest.mark.parametrize("name", [name for name in UPSAMPLERS if name != "identity"])
@pytest.mark.parametrize("factor", [1, 2, 3, 5, 7])
def test_every_upsampler_reaches_factor_times_the_grid(name, factor):
    teacher = random_teacher((16, 24))
    made = sharpener(teacher, upsampler=name, factor=factor)
    out = made(images(16 * factor, 24 * factor))
    assert out.spatial.shape == (2, 32, 2 * factor, 3 * factor) == (2, 32, *made.grid(made.native_size))
    assert out.spatial.dtype == torch.float32 and out.spatial.isfinite().all()
    assert made.native_size == (16 * factor, 24 * factor) and made.patch_size == 8


def test_summary_is_the_whole_images():
    teacher, x = random_teacher(), images()
    torch.testing.assert_close(sharpener(teacher)(x).summary, teacher(shrink(x, (48, 64))).summary)


def test_bilinear_and_tile_are_in_the_teachers_space():
    teacher, x = random_teacher(), images()
    low = teacher(shrink(x, (48, 64))).spatial
    expected = torch.nn.functional.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(build("bilinear", teacher)(x).spatial, expected)
    corner = teacher(x[..., :48, 64:]).spatial
    torch.testing.assert_close(build("tile", teacher)(x).spatial[..., :6, 8:], corner)


def test_tiles_are_cut_and_stitched_in_place():
    x = images(6, 9)
    assert torch.equal(stitch(cut(x, 3), 3), x)
    assert torch.equal(cut(x, 3)[5], x[0, :, 2:4, 6:9])


def test_whole_and_tiles_go_in_one_call_and_chunks_change_nothing():
    teacher = Counting(random_teacher())
    x, others = images(), images(48, 64, 3)
    at_once = look(teacher, x, 2, (2,), None, others)
    assert teacher.calls == [2 + 2 * 4 + 3]
    chunked = look(teacher, x, 2, (2,), 4, others)
    assert teacher.calls[1:] == [4, 4, 4, 1]
    for one, other in zip((at_once[0].summary, at_once[0].spatial, *at_once[1:]), (*chunked[0], *chunked[1:])):
        torch.testing.assert_close(one, other)


def test_factor_1_shows_the_image_to_the_teacher_once():
    teacher = Counting(random_teacher())
    whole, tiles, _ = look(teacher, images(48, 64), 1, (1,))
    assert teacher.calls == [2] and tiles is whole.spatial


def test_a_flexible_teacher_is_sharpened_at_other_sizes_and_a_bias_follows():
    made = sharpener()
    assert made(images(64, 32, 1)).spatial.shape == (1, 32, 8, 4)


def test_saved_and_loaded_it_answers_the_same_and_is_the_same(tmp_path):
    teacher = random_teacher()
    made = sharpener(teacher)
    made.save(tmp_path / "run" / "export")
    for folder in (tmp_path / "run", tmp_path / "run" / "export"):
        again = build(str(folder), teacher)
        assert torch.equal(again(images()).spatial, made(images()).spatial)
        assert again.identity == made.identity and again.config == made.config
    assert sorted(p.name for p in (tmp_path / "run" / "export").iterdir()) == ["adapter.safetensors", "config.json"]


def test_identity_follows_weights_and_teacher_but_not_chunks():
    made = sharpener()
    chunked = Sharpener(made.encoder, made.config.model_copy(update={"max_tiles_per_call": 1}), made.adapter)
    before = made.identity
    assert chunked.identity == before
    with torch.no_grad():
        made.adapter.upsampler.fusion.gamma2[0] += 1
    assert made.identity != before
    assert build("tile", random_teacher(seed=1)).identity != build("tile", random_teacher()).identity


def test_an_adapter_of_another_teacher_is_an_error_that_names_both(tmp_path):
    teacher, other = random_teacher(), random_teacher(seed=1)
    sharpener(teacher).save(tmp_path)
    with pytest.raises(UserError) as error:
        load(tmp_path, other)
    assert teacher.identity in str(error.value) and other.identity in str(error.value)
    with pytest.raises(UserError, match="another teacher"):
        load(tmp_path, random_teacher(width=16))


def test_damaged_or_absent_adapters_are_explained(tmp_path):
    teacher = random_teacher()
    assert missing("bilinear") is None
    assert "no trained sharpener" in missing(tmp_path)
    sharpener(teacher).save(tmp_path)
    assert missing(tmp_path) is None
    weights = tmp_path / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"adapter\.safetensors cannot be loaded"):
        load(tmp_path, teacher)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "something"}))
    with pytest.raises(UserError, match="no sharpener of this version"):
        load(tmp_path, teacher)


@pytest.mark.parametrize("size, text", [((95, 128), "multiples of 2"), ((98, 128), "patch size 8"), ((0, 0), "patch")])
def test_sizes_it_cannot_take_are_explained(size, text):
    with pytest.raises(UserError, match=text):
        sharpener()(torch.rand(1, 3, *size))


def test_it_stays_frozen_inside_a_module_in_training():
    made = sharpener()
    torch.nn.ModuleList([made]).train()
    assert not any(module.training for module in made.modules())
    assert not any(p.requires_grad for p in made.parameters())


def test_bf16_weights_follow_fp32():
    made = sharpener()
    full = made(images()).spatial
    made.adapter.upsampler.to(torch.bfloat16)
    half = made(images()).spatial
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.05 * full.abs().max()


def test_the_structure_runs_on_the_meta_device():
    teacher = random_teacher()
    with torch.device("meta"):
        adapter = Adapter(SharpenerConfig(fusion={"heads": 8}), teacher)
        low, tiles, image = torch.empty(1, 32, 6, 8), torch.empty(1, 32, 12, 16), torch.empty(1, 3, 96, 128)
        assert adapter(low, tiles, image).shape == (1, 32, 12, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [name for name in UPSAMPLERS if name != "identity"])
def test_a_gpu_answers_as_a_cpu_does(name):
    sharp = sharpener(upsampler=name)
    here = sharp(images())
    there = sharp.cuda()(images().cuda())
    assert (there.spatial.cpu() - here.spatial).norm() < 1e-3 * here.spatial.norm()
    torch.testing.assert_close(there.summary.cpu(), here.summary, rtol=1e-3, atol=1e-4)
