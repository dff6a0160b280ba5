"""The catalogue: what it says of an encoder is what building gives, and what it says of weights is what to do."""

import re

import pytest
import torch

from teachers import catalogue
from teachers.__main__ import main
from teachers.catalogue import build, locate, missing
from teachers.entries import ALIASES, CATALOGUE
from teachers.errors import UserError
from teachers.features import Dims

DESCRIBED = [name for name, entry in CATALOGUE.items() if entry.size is not None]


def on_meta(name: str):
    if name.startswith("tabletop") and missing(name):
        pytest.skip(missing(name))  # its configuration lies beside its weights
    return build(name, meta=True)


@pytest.mark.parametrize("name", DESCRIBED)
def test_an_entry_says_what_building_gives(name):
    entry, encoder = CATALOGUE[name], on_meta(name)
    assert encoder.name == name
    assert (encoder.native_size, encoder.patch_size, encoder.dims) == (entry.size, entry.patch, entry.dims)
    assert encoder.licence == entry.licence
    assert sum(p.numel() for p in encoder.parameters()) == entry.parameters
    assert all(p.is_meta for p in encoder.parameters())


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_meta_encoder_runs_so_a_plan_can_count_its_operations(name):
    from torch.utils.flop_counter import FlopCounterMode

    encoder = on_meta(name)
    with FlopCounterMode(display=False) as counter:
        summary, spatial = encoder(torch.rand(1, 3, *encoder.native_size, device="meta"))
    assert spatial.shape == (1, encoder.dims.spatial, *encoder.grid(encoder.native_size))
    assert (None if summary is None else summary.shape[1]) == encoder.dims.summary
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("name", ["dfn_clip", "siglip", "siglip2", "siglip2_378", "siglip2_g"])
def test_an_entrys_weights_are_those_that_open_clip_publishes_for_its_model_and_tag(name):
    import open_clip

    entry = CATALOGUE[name]
    published = open_clip.get_pretrained_cfg(entry.options["model"], entry.options["tag"])
    assert entry.weights == "hf:" + published["hf_hub"].rstrip("/")
    assert bool(published.get("quick_gelu")) == bool(
        open_clip.get_model_config(entry.options["model"]).get("quick_gelu")
    )


@pytest.mark.parametrize("name", ["dinov2_l", "dinov2_g", "dinov3_l", "dinov3_h", "dinov3_7b", "sam_h", "paligemma"])
def test_an_entrys_weights_are_those_that_timm_publishes_for_its_model(name):
    import timm

    entry = CATALOGUE[name]
    published = timm.get_pretrained_cfg(entry.options["model"])
    assert entry.weights == "hf:" + published.hf_hub_id
    assert published.license.replace("-", " ") in entry.licence.lower().replace("-", " ")


def test_whitening_is_each_models_own():
    clip, half = (0.48145466, 0.4578275, 0.40821073), (0.5, 0.5, 0.5)
    imagenet = (0.485, 0.456, 0.406)
    means = {
        "dfn_clip": clip,
        "siglip": half,
        "siglip2_g": half,
        "dinov2_l": imagenet,
        "dinov3_7b": imagenet,
        "sam_h": imagenet,
        "paligemma": half,
        "lite0": half,
    }
    for name, mean in means.items():
        family = catalogue._family(CATALOGUE[name])
        if CATALOGUE[name].family == "open_clip_encoder":
            options = {key: CATALOGUE[name].options[key] for key in ("model", "tag")}
            source = family.resolve(name, weights=CATALOGUE[name].weights, config=None, meta=True, **options)
            assert source.mean == mean
        else:
            import timm

            assert timm.get_pretrained_cfg(CATALOGUE[name].options["model"]).mean == mean


def test_names_of_the_hub_mean_the_same_networks():
    import timm

    for alias, (known, options) in ALIASES.items():
        model = {**CATALOGUE[known].options, **options}["model"]
        assert timm.get_pretrained_cfg(model).hf_hub_id == f"timm/{model}"
        size = {"s": "small", "b": "base", "l": "large", "g": "giant", "h": "huge", "7": "7b"}[
            alias.partition("vit")[2][0]
        ]
        assert size in model and alias.partition("_")[0] in model and ("reg4" in model) == alias.endswith("_reg")
    ours, theirs = build("dinov2_l", meta=True), build("dinov2_vitl14_reg", meta=True)
    assert theirs.name == "dinov2_vitl14_reg" and ours.identity == theirs.identity and ours.licence == theirs.licence
    small = build("dinov2_vits14", meta=True)
    assert (small.native_size, small.patch_size, small.dims) == ((448, 448), 14, Dims(384, 384))
    assert "timm/vit_base_patch14_reg4_dinov2.lvd142m" in missing("dinov2_vitb14_reg")


def test_the_summary_of_dinov3_is_its_class_token():
    from timm.models.eva import Eva

    options = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    chosen = CATALOGUE["dinov3_l"].options["model_args"]
    make = {"model": "vit_large_patch16_dinov3", "weights": "random", "image_size": 32}
    encoder = build("timm", model_args={**options, **chosen}, **make)
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        tokens = encoder.network.forward_features(encoder.whiten(images))
    assert isinstance(encoder.network, Eva)
    torch.testing.assert_close(encoder(images).summary, tokens[:, 0])
    # Pooling leaves no trace in the tensors, but caches must not take one for the other.
    assert build("timm", model_args=options, **make).identity != encoder.identity


@pytest.mark.parametrize(
    "name, options",
    [
        ("siglip2_naflex", {}),
        ("siglip2", {"weights": "naflex"}),
        ("siglip2", {"weights": "hf:google/siglip2-so400m-patch16-naflex"}),
        ("timm", {"model": "naflexvit_so400m_patch16_siglip.v2_webli"}),
        ("open_clip", {"model": "ViT-SO400M-16-SigLIP2-NaFlex"}),
    ],
)
def test_naflex_checkpoints_are_refused_with_what_to_use_instead(name, options):
    with pytest.raises(UserError, match="NaFlex(.*\n)+.*siglip2_378"):
        build(name, meta=True, **options)
    assert "siglip2_g" in missing(name, **options)


def test_image_size_reaches_every_family():
    assert build("dfn_clip", meta=True, image_size=[224, 448]).native_size == (224, 448)
    assert build("dinov2_l", meta=True, image_size=224).native_size == (224, 224)
    assert build("random", image_size=[32, 64]).native_size == (32, 64)
    with pytest.raises(UserError, match="image_size='big'"):
        build("dinov2_l", meta=True, image_size="big")


def test_missing_weights_say_the_same_with_and_without_building(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, command in {
        "dfn_clip": r"hf download apple/DFN5B-CLIP-ViT-H-14-378 --include 'open_clip_\*'",
        "dinov2_l": "hf download timm/vit_large_patch14_reg4_dinov2.lvd142m model.safetensors",
    }.items():
        assert re.search(command, missing(name))
        with pytest.raises(UserError) as caught:
            build(name)
        assert str(caught.value) == missing(name)
    assert "train.py" in missing("radio")
    assert missing("random") is None and missing("dfn_clip", "random") is None


def test_unknown_names_options_and_dtypes_list_the_known_ones():
    with pytest.raises(UserError, match="unknown encoder 'dfn'(.*\n)+.*dfn_clip, siglip"):
        build("dfn")
    with pytest.raises(UserError, match="unknown encoder 'dfn'"):
        locate("dfn")
    with pytest.raises(UserError, match="has no option 'widht'(.*\n)+.*width"):
        build("random", widht=3)
    assert "has no option 'layers'" in missing("lite0", layers=16)
    with pytest.raises(UserError, match="unknown encoder dtype 'half'(.*\n)+.*bf16"):
        build("random", dtype="half")


@pytest.mark.parametrize("columns", [80, 200])
def test_the_command_shows_every_entry_and_how_to_get_it(capsys, monkeypatch, tmp_path, columns):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[: lines.index("") if "" in lines else len(lines)]
    for name, entry in CATALOGUE.items():
        (row,) = [line for line in table if line.split()[:1] == [name]]
        if entry.size:
            licence = entry.licence.split()[0] if entry.weights else "their own"
            assert "×".join(map(str, entry.size)) in row and licence in row
    assert any(line.endswith("hf download apple/DFN5B-CLIP-ViT-H-14-378 --include 'open_clip_*'") for line in lines)
    assert all(len(line) <= columns for line in lines if "hf download" not in line)


def test_the_command_shows_one_entry_with_its_options(capsys):
    assert main(["lite0"]) == 0
    assert "layer=16, match=position" in capsys.readouterr().out
    assert main(["dinov2_vitb14_reg"]) == 0
    assert "another name for timm model=vit_base_patch14_reg4_dinov2.lvd142m" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["lite9"]) == 2
    assert "unknown encoder 'lite9'" in capsys.readouterr().err
