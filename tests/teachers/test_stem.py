"""A convolutional stem: the grid of any patch size, every pixel seen, and a student that is built with one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from teachers.radio import RadioModel
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded, torch_rng
from teachers.stem import conv_stem, stem_strides


@pytest.mark.parametrize(("patch", "strides"), [(1, []), (8, [2, 2, 2]), (12, [2, 2, 3]), (14, [2, 7]), (16, [2] * 4)])
def test_strides_are_the_prime_factors(patch, strides):
    assert stem_strides(patch) == strides


@pytest.mark.parametrize("patch", [1, 4, 6, 8, 10, 14, 16])
def test_the_grid_is_the_images_over_the_patch_and_every_pixel_counts(patch):
    with seeded("stem", patch):
        stem = conv_stem(stem_strides(patch), 64, nn.Identity)
    images = torch.rand(1, 3, 2 * patch, 3 * patch, generator=torch_rng("stem", patch)).requires_grad_()
    out = stem(images)
    assert out.shape == (1, 64, 2, 3)
    out.square().sum().backward()
    assert (images.grad != 0).any(1).float().mean() > 0.95  # a ReLU may shut a few


def spec(stem: str) -> RadioSpec:
    return RadioSpec(patch=4, width=16, depth=1, num_heads=2, cpe_max=32, registers=2,
                     heads={"clip": HeadSpec(10, MlpSpec(8), 6, MlpSpec(8))}, stem=stem)  # fmt: skip


def test_a_students_patches_are_what_the_stem_says_row_by_row_whatever_the_batch():
    with seeded("student"):
        model = RadioModel(spec("conv")).eval()
    generator, images = model.patch_generator, torch.rand(3, 3, 8, 12, generator=torch_rng("images"))
    with torch.no_grad():
        tokens = generator(images)[:, model.first_patch :] - generator.positions.fixed((2, 3))
        wanted = generator.embedder.stem(images)
        torch.testing.assert_close(tokens, wanted.flatten(2).mT, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(generator(images[:1]), generator(images)[:1], atol=1e-5, rtol=1e-5)
        assert model(images)["clip"].features.shape == (3, 10, 2, 3)


def test_configs_written_before_the_stem_was_a_choice_are_linear():
    data = spec("linear").as_dict()
    del data["stem"]
    assert RadioSpec.from_dict(data) == spec("linear")
