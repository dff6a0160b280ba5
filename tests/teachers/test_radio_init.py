"""What a student begins from: a timm ViT or another student, converted so that it answers as its source did."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_init import initialise
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import torch_rng
from tests.teachers.radio_toys import MLP, SPEC, images, model


@pytest.fixture
def other(tmp_path):
    """(spec, seed) → the path of an export of such a student, and the student."""

    def make(spec: RadioSpec, seed: int = 9) -> tuple[str, RadioModel]:
        made = model(seed, spec)
        config = {"format": "radio-distill/1", "licence": "none", "preferred_size": [16, 16], "spec": spec.as_dict()}
        (tmp_path / "config.json").write_text(json.dumps(config | {"teachers": {}}))
        save_file({key: value.contiguous() for key, value in made.state_dict().items()}, tmp_path / "model.safetensors")
        return str(tmp_path), made

    return make


# From timm --------------------------------------------------------------------------------------------------------


def tiny_timm(monkeypatch, name: str, **options):
    """`timm:NAME` of two narrow blocks, so that it is quick: (the network, its encoder's whitening)."""
    import timm

    create = timm.create_model
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, **options}
    monkeypatch.setattr(timm, "create_model", lambda model, **args: create(model, **{**args, **small}))
    from teachers.timm_encoder import build

    encoder = build(name=name, model=name, weights="random")
    for number, parameter in enumerate(encoder.network.parameters()):
        parameter.data.normal_(std=0.2, generator=torch_rng(name, number))
    monkeypatch.setattr("teachers.timm_encoder.build", lambda **_: encoder)
    return encoder


PLAIN = RadioSpec(
    patch=16, width=32, depth=2, num_heads=2, cpe_max=224, registers=0, heads={}, token_per_teacher=False,
    final_norm=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("vit_tiny_patch16_224", {}, {}),
        ("vit_tiny_patch16_224", {}, {"patch_bias": True, "spectral": True}),
        ("vit_tiny_patch16_224", {"qkv_bias": False, "init_values": 0.1}, {"layer_scale": 1e-5}),
        ("vit_tiny_patch16_224", {"init_values": 0.1}, {}),
        ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 4.0}, {"patch": 14, "cpe_max": 518, "registers": 4,
                                                               "mlp": "swiglu", "mlp_ratio": 3.0}),
    ],
)  # fmt: skip
def test_a_student_begun_from_timm_answers_as_the_timm_model(monkeypatch, name, options, changes):
    encoder = tiny_timm(monkeypatch, name, **options)
    made = model(spec=replace(PLAIN, **changes))
    said = initialise(made, f"timm:{name}")
    assert said == f"timm:{name}: 2 blocks, last norm, positions, patch embedding, summary token of all teachers" + (
        ", 4 registers; fresh: nothing" if made.spec.registers else "; fresh: nothing"
    )
    batch = images(1, 3, made.spec.cpe_max, made.spec.cpe_max)
    with torch.no_grad():
        wanted = encoder.network.forward_features(encoder.whiten(batch))
        got = made.tokens(batch)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_positions_and_patches_of_another_size_are_resampled(monkeypatch):
    encoder = tiny_timm(monkeypatch, "vit_tiny_patch16_224")
    made = model(spec=replace(PLAIN, patch=32, cpe_max=320, token_per_teacher=True, heads=SPEC.heads, registers=1))
    said = initialise(made, "timm:vit_tiny_patch16_224")
    assert "positions (14×14 → 10×10), patch embedding (16 → 32 pixels); fresh: summary token of clip" in said
    assert "1 register" in said.split("fresh")[1]
    table = encoder.network.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    with torch.no_grad():
        mean, std = torch.tensor(made.spec.mean), torch.tensor(made.spec.std)
        kernel, flat = encoder.network.patch_embed.proj, torch.full((1, 3, 16, 16), 0.7)
        wanted = torch.nn.functional.interpolate(table, (10, 10), mode="bicubic", align_corners=True)
        bias = kernel(encoder.whiten(flat)).flatten()  # of an even grey; patches of any size see the same
        grey = made.patch_generator.embedder(((0.7 - mean) / std)[:, None, None].expand(3, 32, 32)[None])[0, 0]
        got = made.patch_generator.positions.table() + grey[:, None, None]
    torch.testing.assert_close(got, wanted + bias[:, None, None], atol=1e-4, rtol=1e-4)


def test_weights_may_be_named_and_a_reparametrised_student_begins_from_them_too(monkeypatch):
    seen = {}
    encoder = tiny_timm(monkeypatch, "vit_tiny_patch16_224")
    monkeypatch.setattr("teachers.timm_encoder.build", lambda **asked: seen.update(asked) or encoder)
    made = model(spec=replace(PLAIN, spectral=True, damp=0.1))
    initialise(made, "timm:vit_tiny_patch16_224:hf:somebody/weights")
    assert (seen["model"], seen["weights"]) == ("vit_tiny_patch16_224", "hf:somebody/weights")
    qkv = made.blocks[1].attn.qkv
    torch.testing.assert_close(qkv.weight, encoder.network.blocks[1].attn.qkv.weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(qkv.parametrizations.weight.original, encoder.network.blocks[1].attn.qkv.weight)


@pytest.mark.parametrize(("name", "text"), [("vit_base_patch16_clip_224", "norms its tokens"), ("resnet10t", "no blo")])
def test_what_is_no_plain_vit_is_refused(monkeypatch, name, text):
    if name == "resnet10t":
        from teachers.timm_encoder import build

        encoder = build(name=name, model=name, weights="random")
        monkeypatch.setattr("teachers.timm_encoder.build", lambda **_: encoder)
    else:
        tiny_timm(monkeypatch, name)
    with pytest.raises(UserError, match=text):
        initialise(model(spec=PLAIN), f"timm:{name}")


def test_another_trunk_is_refused_and_both_are_named(monkeypatch):
    tiny_timm(monkeypatch, "vit_tiny_patch16_224")
    with pytest.raises(UserError, match="width 32, depth 2, 2 attention heads") as caught:
        initialise(model(spec=replace(PLAIN, width=48, depth=3)), "timm:vit_tiny_patch16_224")
    assert "the student has width 48, depth 3, 2 attention heads" in caught.value.what
    with pytest.raises(UserError, match="gelu MLPs of 128; the student has .* gelu MLPs of 64"):
        initialise(model(spec=replace(PLAIN, mlp_ratio=2.0)), "timm:vit_tiny_patch16_224")


# From a student ---------------------------------------------------------------------------------------------------


def test_a_student_begun_from_its_twin_is_its_twin(other):
    path, source = other(SPEC)
    made = model()
    said = initialise(made, path)
    assert said.endswith("fresh: nothing") and "features head of sam" in said and "summary head of siglip" in said
    state = source.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in made.state_dict().items())


def test_tokens_and_heads_go_to_teachers_of_the_same_name(other):
    path, source = other(SPEC)
    wide = MlpSpec(20)
    heads = {"dino": HeadSpec(9, MLP), "siglip": SPEC.heads["siglip"], "clip": HeadSpec(10, wide, 6, MLP)}
    made = model(spec=replace(SPEC, heads=heads, cpe_max=16, registers=4))
    before = {key: tensor.clone() for key, tensor in made.state_dict().items()}
    said = initialise(made, path)
    assert said.split("; fresh: ")[1].split(", ") == [
        "summary token of dino", "1 register", "features head of dino", "features head of clip"
    ]  # fmt: skip
    mine, theirs = made.patch_generator.tokens, source.patch_generator.tokens
    assert torch.equal(mine[[1, 2, 3, 4, 5]], theirs[[2, 0, 3, 4, 5]])
    assert torch.equal(mine[[0, 6]], before["patch_generator.tokens"][[0, 6]])
    taken = {key for key, tensor in made.state_dict().items() if not torch.equal(tensor, before[key])}
    parts = {".".join(key.split(".")[:3]) for key in taken if key.startswith("heads.")}
    assert parts == {"heads.siglip.spatial", "heads.siglip.summary", "heads.clip.summary"}
    for key in taken - {"patch_generator.tokens", "patch_generator.positions.pos_embed"}:
        assert torch.equal(made.state_dict()[key], source.state_dict()[key])


def test_another_whitening_and_reparametrised_weights_change_nothing(other):
    path, source = other(replace(SPEC, spectral=True, spectral_heads=True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.4, 0.3)))
    made = model(spec=replace(SPEC, spectral=True))
    initialise(made, path)
    with torch.no_grad():
        for name, wanted in source(images(2, 3, 16, 24)).items():
            got = made(images(2, 3, 16, 24))[name]
            torch.testing.assert_close(got.features, wanted.features, atol=1e-4, rtol=1e-4)


def test_one_token_for_all_is_left_to_a_student_that_has_one_too(other):
    path, source = other(replace(SPEC, token_per_teacher=False))
    assert "fresh: summary token of clip" in initialise(model(), path)
    one = model(spec=replace(SPEC, token_per_teacher=False))
    assert "summary token of all teachers" in initialise(one, path).split("; fresh")[0]
    assert torch.equal(one.patch_generator.tokens, source.patch_generator.tokens)
