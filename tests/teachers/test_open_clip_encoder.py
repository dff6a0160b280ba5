"""The open_clip family against open_clip itself: tokens, summaries, texts, sizes, and files that do not fit."""

import json
from copy import deepcopy

import pytest
import torch
from tiny_towers import NATIVE, PREPROCESS, TIMM, WORDS, tower, write_tower
from torch.nn import functional as F

from teachers.catalogue import build, locate, missing
from teachers.errors import UserError
from teachers.open_clip_encoder import OpenClipEncoder
from teachers.seeding import torch_rng
from teachers.words import WordTokenizer


def images(*size: int) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch_rng("images", *size))


def whitened(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(PREPROCESS[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def test_native_tower_gives_the_projected_summary_and_unprojected_tokens_after_the_last_norm(towers):
    encoder, model, x = build("open_clip", weights=str(towers["native0"])), tower(NATIVE), images(32, 32)
    model.visual.output_tokens = True
    pooled, tokens = model.visual(whitened(x))
    summary, spatial = encoder(x)
    torch.testing.assert_close(summary, pooled)
    torch.testing.assert_close(spatial.flatten(2).mT, tokens)
    assert spatial.shape == (2, 48, 4, 4)


def test_timm_tower_gives_the_attention_pool_and_tokens_after_the_last_norm(towers):
    encoder, model, x = build("open_clip", weights=str(towers["timm0"])), tower(TIMM), images(56, 56)
    summary, spatial = encoder(x)
    torch.testing.assert_close(summary, model.encode_image(whitened(x)))
    torch.testing.assert_close(spatial.flatten(2).mT, model.visual.trunk.forward_features(whitened(x)))


@pytest.mark.parametrize("kind", ["native", "timm"])
def test_texts_are_embedded_as_by_open_clip_and_only_then_is_the_text_tower_built(towers, kind):
    encoder = build("open_clip", weights=str(towers[f"{kind}0"]))
    held = sum(p.numel() for p in encoder.parameters())
    texts = ["a red ball", "the table"]
    tokens = WordTokenizer(WORDS, 12)(texts)
    expected = F.normalize(tower({"native": NATIVE, "timm": TIMM}[kind]).encode_text(tokens), dim=-1)
    assert encoder.text is None and encoder.has_text
    torch.testing.assert_close(encoder.encode_text(texts), expected)
    assert sum(p.numel() for p in encoder.parameters()) > held


def test_without_words_the_tokenizer_is_open_clips(tmp_path):
    import open_clip

    cfg = deepcopy(NATIVE)
    cfg["text_cfg"].update(vocab_size=49408, context_length=77)
    encoder = build("open_clip", weights=str(write_tower(tmp_path / "tower", cfg, words=None)))
    expected = tower(cfg).encode_text(open_clip.SimpleTokenizer()(["a red ball"]), normalize=True)
    torch.testing.assert_close(encoder.encode_text(["a red ball"]), expected)


@pytest.mark.parametrize(("kind", "size"), [("native", [24, 64]), ("native", [16, 16]), ("timm", [42, 84])])
def test_image_size_resamples_the_positions(towers, kind, size):
    encoder = build("open_clip", weights=str(towers[f"{kind}0"]), image_size=size)
    assert encoder.native_size == tuple(size)
    assert encoder(images(*size)).spatial.shape[2:] == encoder.grid(tuple(size))
    with pytest.raises(UserError, match="its size is fixed"):
        encoder(images(56, 56))


def test_resampling_keeps_a_grid_of_the_same_number_of_cells_apart(towers):
    # 4×4 and 2×8 both have 16 cells: a table that is only counted, not looked at, would stay as it is
    square = build("open_clip", weights=str(towers["native0"]))
    wide = build("open_clip", weights=str(towers["native0"]), image_size=[16, 64])
    assert not torch.equal(square.network.positional_embedding, wide.network.positional_embedding)


def test_a_size_that_patches_do_not_divide_is_rounded_down_or_refused():
    assert build("open_clip", model="ViT-SO400M-14-SigLIP-384", meta=True).native_size == (378, 378)
    with pytest.raises(UserError, match="no multiple of its patch size 14"):
        build("open_clip", model="ViT-SO400M-14-SigLIP-384", meta=True, image_size=384)


def test_pooling_before_the_norm_still_gives_tokens(tmp_path):
    for name, change in {
        "avg": {"pool_type": "avg", "final_ln_after_pool": True},
        "attention": {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    }.items():
        cfg = deepcopy(NATIVE)
        cfg["vision_cfg"].update(change)
        encoder = build("open_clip", weights=str(write_tower(tmp_path / name, cfg)))
        summary, spatial = encoder(images(32, 32))
        torch.testing.assert_close(summary, tower(cfg).encode_image(whitened(images(32, 32))))
        assert spatial.shape == (2, 48, 4, 4)


def test_pt_files_and_other_weights_for_a_configuration(towers, tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"state_dict": tower(NATIVE, seed=1).state_dict()}, path)
    encoder = build("open_clip", config=str(towers["native0"]), weights=str(path))
    assert encoder.identity == build("open_clip", weights=str(towers["native1"])).identity


def test_licence_comes_from_the_configuration(towers):
    assert build("open_clip", weights=str(towers["native0"])).licence == "Apache-2.0"


def test_a_file_of_another_architecture_names_the_first_differences(towers):
    other = towers["timm0"] / "model.safetensors"
    with pytest.raises(UserError) as caught:
        build("open_clip", config=str(towers["native0"]), weights=str(other))
    text = str(caught.value)
    assert str(other) in text and str(towers["native0"]) in text and "visual.class_embedding (48,)" in text
    wide = deepcopy(NATIVE)
    wide["vision_cfg"]["width"] = 72
    with pytest.raises(UserError, match=r"visual.proj is \(72, 24\) in the file, \(48, 24\) in the network") as caught:
        folder = write_tower(towers["native0"].parent / "wide", wide)
        build("open_clip", config=str(towers["native0"]), weights=str(folder / "model.safetensors"))


def test_truncated_and_pickled_files_are_refused(towers, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((towers["native0"] / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read: .*cut.safetensors"):
        build("open_clip", config=str(towers["native0"]), weights=str(cut))
    torch.save({"state_dict": tower(NATIVE)}, tmp_path / "module.pt")
    with pytest.raises(UserError, match="cannot be read: .*module.pt"):
        build("open_clip", config=str(towers["native0"]), weights=str(tmp_path / "module.pt"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "needs to know which model"),
        ({"model": "ViT-B-33"}, "knows no model 'ViT-B-33'.*\n.*ViT-B-32"),
        ({"model": "ViT-B-32", "weights": "laion9b"}, "no weights called 'laion9b'.*\n.*openai"),
        (
            {"model": "ViT-H-14-378", "weights": "dfn5b"},
            "not trained with the activation.*\n.*model=ViT-H-14-378-quickgelu",
        ),
        ({"model": "ViT-B-32", "tag": "laion2b_s34b_b79k"}, "Hugging Face cache(.*\n)+.*hf download laion/"),
        ({"model": "ViT-B-32", "weights": "./none.pt"}, "not there: none.pt"),
        ({"weights": "broken"}, "broken.*describes no model that open_clip can build: .*vit_none"),
        ({"weights": "."}, "no configuration of an open_clip model"),
    ],
)
def test_mistakes_say_what_to_do(options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    vision = {"timm_model_name": "vit_none", "timm_proj": "none"}
    broken = {"model_cfg": {**TIMM, "vision_cfg": vision}}
    (tmp_path / "broken" / "open_clip_config.json").write_text(json.dumps(broken))
    (tmp_path / "broken" / "model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=text) as caught:
        build("open_clip", **options)
    weights = options.pop("weights", None)
    if weights not in (".", "broken"):  # a folder is only opened by build
        assert missing("open_clip", weights, **options) == str(caught.value)


def test_a_tokenizer_that_needs_transformers_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    encoder = build("open_clip", model="ViT-SO400M-14-SigLIP-384", meta=True)
    encoder.whiten = encoder.whiten.to_empty(device="cpu")  # as if it had weights
    with pytest.raises(UserError, match="needs the package 'transformers'(.*\n)+.*pip install transformers"):
        encoder.encode_text(["a photo"])


def test_a_meta_encoder_cannot_embed_texts():
    with pytest.raises(UserError, match="built without weights"):
        build("open_clip", model="ViT-B-32", meta=True).encode_text(["a"])


def test_locate_finds_the_file_that_build_loads(towers):
    assert locate("open_clip", str(towers["native0"])) == str(towers["native0"] / "model.safetensors")
    assert isinstance(build("open_clip", weights=str(towers["native0"])), OpenClipEncoder)
