"""Every teacher loads what its publisher publishes, name by name and shape by shape, from a Hugging Face cache.

The large files are hollow and loaded on the meta device: where they lie, what is in them and what is said of a damaged
one is tested; that values arrive is tested with smaller ones.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from published import PICKLED, Repository, cache, of_open_clip, of_timm, save_hollow_pickle
from safetensors.torch import load_file
from students import student
from torch import Tensor

from teachers import weight_files
from teachers.catalogue import build, locate, missing
from teachers.entries import CATALOGUE
from teachers.errors import UserError
from teachers.features import Encoder
from teachers.seeding import torch_rng
from teachers.weight_files import save_tensors

SIGLIP, DFN = ("ViT-SO400M-14-SigLIP-384", "webli"), ("ViT-H-14-378-quickgelu", "dfn5b")


@dataclass(frozen=True)
class Case:
    """An entry with its options, and what is published for it."""

    entry: str
    repository: Callable[[], Repository]
    options: dict
    key: str  # of the image tower: the one that the damages are done to


def entry_case(entry: str, key: str, **more) -> Case:
    options = CATALOGUE[entry].options
    if CATALOGUE[entry].family == "timm_encoder":
        return Case(entry, lambda: of_timm(options["model"], **more), {}, key)
    return Case(entry, lambda: of_open_clip(options["model"], options["tag"], **more), {}, key)


def timm_case(model: str, key: str, **more) -> Case:
    return Case("timm", lambda: of_timm(model, **more), {"model": model}, key)


def open_clip_case(model: str, tag: str, key: str, **more) -> Case:
    return Case("open_clip", lambda: of_open_clip(model, tag, **more), {"model": model, "tag": tag}, key)


QKV, TRUNK_QKV, NATIVE_QKV = (
    "blocks.0.attn.qkv.weight",
    "visual.trunk.blocks.0.attn.qkv.weight",
    "visual.transformer.resblocks.0.attn.in_proj_weight",
)
HOLLOW = {
    "dfn_clip": entry_case("dfn_clip", NATIVE_QKV, file=PICKLED),
    "siglip": entry_case("siglip", TRUNK_QKV),
    "siglip2": entry_case("siglip2", TRUNK_QKV),
    "siglip2_378": entry_case("siglip2_378", TRUNK_QKV),
    "siglip2_g": entry_case("siglip2_g", "visual.trunk.attn_pool.latent"),
    "dinov2_l": entry_case("dinov2_l", "blocks.23.ls2.gamma"),
    "dinov2_g": entry_case("dinov2_g", "reg_token"),
    "dinov3_l": entry_case("dinov3_l", QKV),
    "dinov3_h": entry_case("dinov3_h", "blocks.31.mlp.fc1_g.weight"),
    "dinov3_7b": entry_case("dinov3_7b", "blocks.39.mlp.fc2.weight"),
    "sam_h": entry_case("sam_h", "blocks.7.attn.rel_pos_h"),
    "paligemma": entry_case("paligemma", QKV),
    # Of the entries that can be any model, one of each kind.
    "open_clip native": open_clip_case("ViT-B-32", "laion2b_s34b_b79k", NATIVE_QKV, file=PICKLED),
    "open_clip in half": open_clip_case("ViT-B-32-quickgelu", "openai", NATIVE_QKV, dtype=torch.float16),
    "open_clip coca": open_clip_case("coca_ViT-B-32", "laion2b_s13b_b90k", NATIVE_QKV, file=PICKLED),
    "open_clip trunk": open_clip_case("EVA02-B-16", "merged2b_s8b_b131k", "visual.trunk.blocks.0.attn.q_proj.weight"),
    "open_clip convolutions": open_clip_case(
        "convnext_base_w", "laion2b_s13b_b82k", "visual.trunk.stem.0.weight", file=PICKLED
    ),
    "timm vit": timm_case("vit_base_patch16_224.augreg_in21k", QKV),
    "timm swin": timm_case("swin_tiny_patch4_window7_224.ms_in1k", "layers.0.blocks.0.attn.qkv.weight"),
    "timm cnn": timm_case("resnet50.a1_in1k", "layer1.0.conv1.weight", file="pytorch_model.bin"),
    "timm classifier of several layers": timm_case("caformer_s18.sail_in1k", "stages.0.blocks.0.mlp.fc1.weight"),
}


@pytest.fixture(scope="session")
def contents() -> Callable[[str], tuple[Repository, dict[str, Tensor]]]:
    """A case → its repository and what is in the file, on meta; made once."""
    known: dict[str, tuple[Repository, dict[str, Tensor]]] = {}

    def get(case: str) -> tuple[Repository, dict[str, Tensor]]:
        if case not in known:
            repository = HOLLOW[case].repository()
            known[case] = repository, repository.tensors()
        return known[case]

    return get


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def load_hollow(case: Case) -> Encoder:
    """What `build` does, with parameters that take no memory."""
    with torch.device("meta"):
        return build(case.entry, device="meta", **case.options)


def assert_refused(build_it: Callable[[], object], file: Path, *texts: str) -> None:
    """With one sentence that names the file and holds the texts, and what to do."""
    with pytest.raises(UserError) as caught:
        build_it()
    assert "\n" not in caught.value.what and str(file) in caught.value.what, caught.value.what
    assert caught.value.expected and all(text in caught.value.what for text in texts), caught.value.what


def reshaped(tensor: Tensor) -> Tensor:
    """With one row more: of a table of positions, of a layer's outputs."""
    return torch.empty((tensor.shape[0] + 1, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)


def test_every_entry_is_tested_here():
    elsewhere = {"lite0", "lite2", "tabletop_clip", "tabletop_siglip", "radio", "radio_l", "random"}  # below
    assert {case.entry for case in HOLLOW.values()} | elsewhere == set(CATALOGUE)
    assert all(CATALOGUE[name].weights.startswith("hf:") for name in HOLLOW if name in CATALOGUE)


@pytest.mark.parametrize("case", HOLLOW)
def test_what_is_published_loads(case, contents, hub, monkeypatch):
    repository, tensors = contents(case)
    file = cache(hub, repository.name, repository.file, tensors)
    read, loaded = [], []
    original, load = weight_files.read_tensors, torch.nn.Module.load_state_dict
    monkeypatch.setattr(weight_files, "read_tensors", lambda path, of: read.append(path) or original(path, of=of))

    def watched(module, state, **options):
        loaded.append(state)
        return load(module, state, **options)

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", watched)
    encoder = load_hollow(HOLLOW[case])
    assert read == [file] == [Path(locate(HOLLOW[case].entry, **HOLLOW[case].options))]
    assert file.stat().st_size >= sum(t.numel() * t.element_size() for t in tensors.values())
    assert file.stat().st_blocks * 512 < 8e6  # a header, and a page for each tensor in a pickled file
    # All of the network, the classifier aside, comes out of the file.
    (state,) = loaded
    assert state.keys() == encoder.network.state_dict().keys()
    assert HOLLOW[case].key.removeprefix("visual.") in state
    assert all(parameter.is_meta for parameter in encoder.parameters())


@pytest.mark.parametrize("case", HOLLOW)
def test_one_key_too_few_too_many_or_misshapen_is_one_sentence(case, contents, hub):
    repository, tensors = contents(case)
    key, own = HOLLOW[case].key, tensors[HOLLOW[case].key]
    damages = {
        f"{key} {tuple(own.shape)} is not in the file": {k: t for k, t in tensors.items() if k != key},
        "norm.surplus (3,) is only in the file": {**tensors, "norm.surplus": torch.empty(3, device="meta")},
        f"{key} is {tuple(reshaped(own).shape)} in the file, {tuple(own.shape)} in the network": {
            **tensors,
            key: reshaped(own),
        },
    }
    for sentence, damaged in damages.items():
        file = cache(hub, repository.name, repository.file, damaged)
        assert_refused(lambda: load_hollow(HOLLOW[case]), file, sentence)


def test_a_text_tower_that_does_not_fit_is_refused_though_only_images_are_asked_for(contents, hub):
    repository, tensors = contents("siglip")
    key = "text.transformer.resblocks.0.mlp.c_fc.weight"
    file = cache(hub, repository.name, repository.file, {k: t for k, t in tensors.items() if k != key})
    assert_refused(lambda: load_hollow(HOLLOW["siglip"]), file, f"{key} (4304, 1152) is not in the file")


# What else is in published repositories -----------------------------------------------------------------------------


def test_buffers_and_scales_that_some_files_have_are_accepted(contents, hub):
    _, tensors = contents("open_clip native")
    repository, _ = contents("open_clip native")
    extra = {
        "attn_mask": (77, 77),
        "logit_bias": (),
        "input_resolution": (),
        "context_length": (),
        "vocab_size": (),
        "text.transformer.embeddings.position_ids": (1, 77),
    }
    more = {**tensors, **{key: torch.empty(shape, device="meta") for key, shape in extra.items()}}
    more["logit_scale"] = torch.empty(1, device="meta")
    cache(hub, repository.name, repository.file, more)
    assert load_hollow(HOLLOW["open_clip native"]).dims.summary == 512


def test_a_siglip_without_bias_loads(contents, hub):
    repository, tensors = contents("siglip")
    cache(hub, repository.name, repository.file, {k: t for k, t in tensors.items() if k != "logit_bias"})
    load_hollow(HOLLOW["siglip"])


def test_the_safe_file_of_a_repository_goes_before_the_pickled_one(contents, hub):
    repository, tensors = contents("siglip")
    cache(hub, repository.name, PICKLED, {"of": torch.empty(3, device="meta")})
    safe = cache(hub, repository.name, repository.file, tensors)
    load_hollow(HOLLOW["siglip"])
    assert locate("siglip") == str(safe)


def test_files_of_transformers_beside_open_clips_are_left_alone(contents, hub):
    # apple's repositories hold pytorch_model.bin by transformers' names beside open_clip_pytorch_model.bin
    repository, tensors = contents("dfn_clip")
    foreign = {"vision_model.embeddings.class_embedding": torch.empty(1280, device="meta")}
    for name in ("pytorch_model.bin", "model.safetensors"):
        cache(hub, repository.name, name, foreign)
    assert "hf download apple/DFN5B-CLIP-ViT-H-14-378" in missing("dfn_clip")
    file = cache(hub, repository.name, repository.file, tensors)
    load_hollow(HOLLOW["dfn_clip"])
    folder = replace(HOLLOW["dfn_clip"], options={"weights": str(file.parent), "model": DFN[0], "tag": DFN[1]})
    load_hollow(folder)  # a clone of the repository, as a folder


@pytest.mark.parametrize(
    ("model", "source"),
    [("vit_huge_patch14_clip_quickgelu_378", DFN), ("vit_so400m_patch14_siglip_384", SIGLIP)],
    ids=["dfn_clip", "siglip"],
)
def test_timm_takes_the_image_tower_out_of_open_clips_file_but_not_the_other_way_round(model, source, hub):
    theirs = of_open_clip(*source)
    file = cache(hub, theirs.name, theirs.file, theirs.tensors())
    options = {"model": model, "weights": str(file), "device": "meta"}
    with torch.device("meta"):
        assert build("timm", **options).patch_size == 14
    own = of_timm(f"{model}.{'dfn5b' if source is DFN else 'webli'}")
    file = cache(hub, own.name, own.file, own.tensors())
    wrong = Case("open_clip", lambda: own, {"model": source[0], "tag": source[1], "weights": str(file)}, "")
    assert_refused(lambda: load_hollow(wrong), file, "logit_scale () is not in the file")


# Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", ["dinov2_l", "sam_h"])
def test_the_numbers_of_the_file_are_those_of_the_network(name, suffix, hub):
    import timm

    shallow = {"model_args": {"depth": 1}, **({"image_size": 1024} if name == "sam_h" else {})}
    with torch.device("meta"):
        state = timm.create_model(CATALOGUE[name].options["model"], **shallow["model_args"]).state_dict()
    rng = torch_rng("published", name)
    tensors = {key: torch.rand(tensor.shape, generator=rng) for key, tensor in state.items()}
    file = cache(hub, CATALOGUE[name].weights.removeprefix("hf:"), suffix, {"place": torch.empty(1)})
    save_tensors(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)
    network = build(name, **shallow).network.state_dict()
    assert network.keys() == tensors.keys()
    assert all(torch.equal(network[key], tensor) for key, tensor in tensors.items())


# Those that come with this project, or in a wheel -------------------------------------------------------------------


def three_damages(tensors: dict[str, Tensor], key: str) -> list[tuple[dict[str, Tensor], str]]:
    return [
        ({k: t for k, t in tensors.items() if k != key}, key),
        ({**tensors, "norm.surplus": torch.ones(3)}, "norm.surplus"),
        ({**tensors, key: torch.zeros(reshaped(tensors[key]).shape)}, key),
    ]


@pytest.mark.parametrize("name", ["tabletop_clip", "tabletop_siglip"])
def test_the_shipped_towers_load_and_damaged_ones_are_refused(name, tmp_path):
    if missing(name):
        pytest.skip(missing(name))
    encoder = build(name)
    tensors = load_file(locate(name))
    for key, tensor in encoder.network.state_dict().items():
        assert torch.equal(tensor, tensors[f"visual.{key}"]), key
    file = tmp_path / "model.safetensors"
    for damaged, text in three_damages(tensors, "visual.trunk.blocks.3.norm1.weight"):
        save_tensors(damaged, file)
        assert_refused(lambda: build(name, weights=str(file)), file, text)


@pytest.mark.parametrize("name", ["lite0", "lite2"])
def test_the_wheels_load_and_damaged_ones_are_refused(name, tmp_path):
    if missing(name):
        pytest.skip(missing(name))
    network = build(name).network.state_dict()
    tensors = torch.load(locate(name), weights_only=True)
    kept = [tensor for key, tensor in tensors.items() if not key.startswith("_fc") and "num_batches" not in key]
    ours = [tensor for key, tensor in network.items() if "num_batches" not in key]
    assert len(kept) == len(ours) and all(torch.equal(a, b) for a, b in zip(kept, ours))
    file = tmp_path / "net.pth"
    key = "_blocks.3._depthwise_conv.weight"
    for damaged, text in three_damages(tensors, key):  # names are another library's: places are compared
        torch.save(damaged, file)
        shape = tuple(tensors[key].shape)
        assert_refused(lambda: build(name, weights=str(file)), file, text if text != key else str(shape))


def exported(folder: Path, config: dict, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_tensors(tensors, folder / "model.safetensors")
    return folder


def radio_l(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """The shipped description with two of its layers, and weights of its own."""
    from teachers.radio import RadioModel
    from teachers.radio_spec import RadioSpec

    config = json.loads((weight_files.SHIPPED / "radio_l" / "config.json").read_text())
    config["spec"]["depth"] = 2
    heads = dict(list(config["spec"]["heads"].items())[:1])
    config["spec"]["heads"] = heads
    with torch.device("meta"):
        state = RadioModel(RadioSpec.from_dict(config["spec"])).state_dict()
    return config, {key: torch.rand(tensor.shape, generator=torch_rng(key)) for key, tensor in state.items()}


@pytest.mark.parametrize("name", ["radio", "radio_l"])
def test_a_students_export_loads_and_damaged_ones_are_refused(name, tmp_path):
    if name == "radio":
        from students import encoder

        made = encoder(student())
        config, tensors = made.config, dict(made.model.state_dict())
    else:
        config, tensors = radio_l(tmp_path)
    folder = exported(tmp_path / "student", config, tensors)
    model = build(name, weights=str(folder)).model.state_dict()
    assert model.keys() == tensors.keys() and all(torch.equal(model[key], tensors[key]) for key in model)
    key = next(key for key in tensors if key.endswith("norm1.weight"))
    for damaged, text in three_damages(tensors, key):
        exported(folder, config, damaged)
        assert_refused(lambda: build(name, weights=str(folder)), folder / "model.safetensors", text)


def test_random_has_no_file():
    assert locate("random") == "random, from a seed"


def test_a_hollow_pickle_has_the_names_and_shapes_of_a_real_one(tmp_path):
    tensors = {"a": torch.rand(2, 3), "b": torch.rand(4).half()}
    save_hollow_pickle(tensors, tmp_path / "hollow.bin")
    read = weight_files.read_tensors(tmp_path / "hollow.bin", of="x")
    assert {k: (t.shape, t.dtype) for k, t in read.items()} == {k: (t.shape, t.dtype) for k, t in tensors.items()}
