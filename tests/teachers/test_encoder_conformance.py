"""One contract, every encoder that can be built here: shapes, precision, sizes, determinism, identity, texts."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from teachers.catalogue import CATALOGUE, build, missing
from teachers.errors import UserError
from teachers.features import Encoder
from teachers.seeding import seeded, torch_rng

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TIMM = {
    "timm vit": {"model": "vit_tiny_patch16_224", "model_args": {**TINY, "img_size": 64}},
    "timm dinov2": {"model": "vit_small_patch14_reg4_dinov2", "model_args": {**TINY, "img_size": 56}},
    "timm cnn": {"model": "resnet10t", "layer": 16, "image_size": 64},
    "timm sam": {"model": "samvit_base_patch16", "model_args": {**TINY, "img_size": 64, "global_attn_indexes": (1,)}},
}
TINY_RADIO = {"patch": 8, "width": 32, "depth": 1, "num_heads": 2, "cpe_max": 64, "registers": 1}
BUILT_HERE = {"open_clip", "timm", "radio", "random"}  # the entries that need a model, by another name below
SHIPPED = [name for name in CATALOGUE if (CATALOGUE[name].weights or "").startswith(("shipped:", "wheel:"))]
CASES = ["random", "open_clip native", "open_clip timm", *TIMM, "radio", "radio adaptor", *SHIPPED]


def student(folder, seed: int):
    """An exported student with one head, as `RadioEncoder` reads it."""
    from teachers.radio import RadioModel
    from teachers.radio_files import CONFIG, FORMAT, WEIGHTS
    from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec

    spec = RadioSpec(**TINY_RADIO, heads={"clip": HeadSpec(48, MlpSpec(16), 24, MlpSpec(16))})
    with seeded("student", seed):
        model = RadioModel(spec)
    folder.mkdir(parents=True, exist_ok=True)
    teachers = {"clip": {"encoder": "random", "weights": None, "options": {}, "has_text": False}}
    config = {"format": FORMAT, "licence": "Apache-2.0", "preferred_size": [32, 32], "teachers": teachers}
    (folder / CONFIG).write_text(json.dumps({**config, "spec": replace(spec).as_dict()}))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
    return str(folder)


@pytest.fixture(scope="module")
def maker(towers, tmp_path_factory) -> Callable[..., Encoder]:
    """case, seed of its weights, options → the encoder."""
    students = tmp_path_factory.mktemp("students")
    small = {name: {"image_size": 64} for name in SHIPPED if name.startswith("lite")}  # quick: they take any size

    def make(case: str, seed: int = 0, **options) -> Encoder:
        if case in SHIPPED:
            if missing(case):
                pytest.skip(missing(case))
            random = {"weights": "random", "seed": seed} if seed else {}
            return build(case, **random, **small.get(case, {}), **options)
        if case in TIMM:
            return build("timm", weights="random", seed=seed, **TIMM[case], **options)
        if case.startswith("open_clip"):
            return build("open_clip", weights=str(towers[f"{case.split()[1]}{seed}"]), **options)
        if case.startswith("radio"):
            adaptor = "clip" if case.endswith("adaptor") else None
            return build("radio", weights=student(students / str(seed), seed), adaptor=adaptor, **options)
        return build("random", patch=8, width=24, image_size=32, seed=seed, **options)

    return make


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def built() -> dict[str, Encoder]:
    return {}


@pytest.fixture
def encoder(maker, case, built) -> Encoder:
    """Encoders are frozen: one of each does for all tests."""
    if case not in built:
        built[case] = maker(case)
    return built[case]


def images(encoder: Encoder, size: tuple[int, int] | None = None, n: int = 2) -> torch.Tensor:
    size = size or encoder.native_size
    return torch.rand(n, 3, *size, generator=torch_rng("images", *size))


def rectangle(encoder: Encoder) -> tuple[int, int]:
    return 2 * encoder.patch_size, 5 * encoder.patch_size


def test_every_entry_is_tried_here_or_on_the_meta_device():
    described = {name for name, entry in CATALOGUE.items() if entry.size is not None}  # test_catalogue builds these
    assert described | BUILT_HERE == set(CATALOGUE)


def test_declares_what_it_is(encoder):
    assert isinstance(encoder.name, str) and isinstance(encoder.licence, str) and encoder.licence
    assert all(side % encoder.patch_size == 0 for side in encoder.native_size)
    assert len(encoder.identity) == 16


def test_answers_in_fp32_with_the_shapes_it_declares(encoder):
    sizes = [encoder.native_size, *([rectangle(encoder)] if encoder.resolution_flexible else [])]
    for size in sizes:
        summary, spatial = encoder(images(encoder, size))
        assert spatial.dtype == torch.float32 and spatial.isfinite().all()
        assert spatial.shape == (2, encoder.dims.spatial, *encoder.grid(size))
        assert encoder.grid(size) == (size[0] // encoder.patch_size, size[1] // encoder.patch_size)
        assert (summary is None) == (encoder.dims.summary is None)
        if summary is not None:
            assert summary.shape == (2, encoder.dims.summary) and summary.dtype == torch.float32


def test_answers_for_an_image_do_not_depend_on_its_batch_nor_on_the_call(encoder):
    x = images(encoder)
    both, again, alone = encoder(x), encoder(x), encoder(x[1:])
    assert torch.equal(both.spatial, again.spatial)
    torch.testing.assert_close(alone.spatial, both.spatial[1:], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(both.spatial[0], both.spatial[1])


def test_is_frozen_also_inside_a_module_in_training(encoder):
    x = images(encoder)
    before = encoder(x).spatial
    parent = torch.nn.Sequential(encoder).train()
    after = parent(x)
    assert not after.spatial.requires_grad and not any(p.requires_grad for p in encoder.parameters())
    assert torch.equal(after.spatial, before)


def test_takes_any_floating_dtype_and_whitens_inside(encoder):
    x = images(encoder).mul(255).round().div(255)
    torch.testing.assert_close(encoder(x.double()).spatial, encoder(x).spatial, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(encoder(torch.zeros_like(x)).spatial, encoder(torch.ones_like(x)).spatial)


def test_refuses_what_it_cannot_take(encoder):
    x = images(encoder)
    for wrong in (x.mul(255).byte(), x[:, :1], x[0]):
        with pytest.raises(UserError, match="floating point"):
            encoder(wrong)
    height, width = encoder.native_size
    with pytest.raises(UserError, match=f"cannot take images of {height + 1}×{width}"):
        encoder(torch.zeros(1, 3, height + 1, width))
    if not encoder.resolution_flexible:
        with pytest.raises(UserError, match="its size is fixed"):
            encoder(torch.zeros(1, 3, 2 * height, width))


def test_identity_is_stable_and_changes_with_the_weights(maker, case, encoder):
    assert maker(case).identity == encoder.identity
    assert maker(case, seed=1).identity != encoder.identity


def test_structure_can_be_had_without_weights(maker, case, encoder):
    structure = maker(case, meta=True)
    assert all(p.is_meta for p in structure.parameters())
    assert (structure.dims, structure.patch_size, structure.native_size) == (
        encoder.dims,
        encoder.patch_size,
        encoder.native_size,
    )
    out = structure(torch.rand(2, 3, *structure.native_size, device="meta"))
    assert out.spatial.shape == encoder(images(encoder)).spatial.shape


def test_bf16_answers_in_fp32_and_close_by(maker, case, encoder):
    if case.startswith("radio"):
        pytest.skip("a student runs in fp32, or under autocast")
    low = maker(case, dtype="bf16")
    x = images(encoder)
    want, got = encoder(x).spatial, low(x).spatial
    assert got.dtype == torch.float32 and low.identity != encoder.identity
    assert (got - want).norm() < 0.1 * want.norm()


def test_embeds_texts_in_the_space_of_its_summary_or_says_that_it_cannot(encoder):
    texts = ["a red ball on the table", "the ball"]
    if not encoder.has_text:
        with pytest.raises(UserError, match="has no text tower"):
            encoder.encode_text(texts)
        return
    embedded = encoder.encode_text(texts)
    assert embedded.shape == (2, encoder.dims.summary) and embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encoder.encode_text(texts[:1]), embedded[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embedded[0], embedded[1])
