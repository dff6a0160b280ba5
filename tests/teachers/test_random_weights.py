"""Fast random weights against the libraries' own initialization: the same constants, the same means and deviations."""

import math
from contextlib import nullcontext

import pytest
import timm
import torch
from tiny_towers import NATIVE, TIMM, write_tower
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from teachers import open_clip_model, random_weights
from teachers.catalogue import build
from teachers.open_clip_source import resolve
from teachers.random_weights import fast_initialization, fill
from teachers.seeding import seeded, torch_rng

TINY = {"embed_dim": 64, "depth": 2, "num_heads": 2}
NETWORKS = {
    "vit": ("vit_tiny_patch16_224", {**TINY, "img_size": 64}),
    "dinov2": ("vit_giant_patch14_reg4_dinov2", {**TINY, "embed_dim": 48, "img_size": 56}),  # fills halves of a weight
    "dinov3": ("vit_small_patch16_dinov3", {**TINY, "img_size": 64}),  # rotary tables
    "siglip": ("vit_so400m_patch14_siglip_384", {**TINY, "img_size": 56}),
    "sam": ("samvit_huge_patch16", {**TINY, "img_size": 64, "global_attn_indexes": (1,)}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}),  # index tables
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1)}),
    "resnet": ("resnet10t", {}),  # torch's own initialization, whose normals are cut by drawing again
}


def made(name: str, seed: int, fast: bool = True) -> nn.Module:
    model, args = NETWORKS[name]
    with fast_initialization("timm", seed) if fast else seeded("timm", seed):
        return timm.create_model(model, num_classes=10, **args)


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def towers_of(cfg: dict, folder, seed: int) -> tuple[nn.Module, nn.Module]:
    source = resolve(
        "x", weights="random", model=None, tag=None, config=str(write_tower(folder / str(seed), cfg)), seed=seed
    )
    return open_clip_model.image_tower(source), open_clip_model.text_tower(source)


def assert_same_distribution(fast: list[nn.Module], own: list[nn.Module]) -> int:
    """Of two seeds each. What the library does not draw is equal; what it draws has its mean and deviation."""
    drawn = 0
    given, given2, wanted, wanted2 = (tensors_of(network) for network in (*fast, *own))
    assert list(given) == list(wanted)
    for name, tensor in wanted.items():
        if torch.equal(tensor, wanted2[name]):
            assert torch.equal(given[name], tensor), name
            continue
        drawn += 1
        n = tensor.numel()
        assert not torch.equal(given[name], given2[name]), name
        ours, theirs = given[name].double(), tensor.double()
        assert abs(ours.std() / theirs.std() - 1) < 5 / math.sqrt(n), (name, ours.std(), theirs.std())
        assert abs(ours.mean() - theirs.mean()) < 7 * theirs.std() / math.sqrt(n), name
    return drawn


@pytest.mark.parametrize("name", NETWORKS)
def test_constants_and_tables_are_the_librarys_and_the_rest_has_its_mean_and_deviation(name):
    networks = [made(name, seed, fast) for fast in (True, False) for seed in (0, 1)]
    assert assert_same_distribution(networks[:2], networks[2:]) >= 8


@pytest.mark.parametrize("cfg", [NATIVE, TIMM], ids=["native", "timm"])
def test_both_towers_of_open_clip_have_its_distribution(cfg, tmp_path, monkeypatch):
    fast = [towers_of(cfg, tmp_path / "fast", seed) for seed in (0, 1)]
    monkeypatch.setattr(open_clip_model, "fast_initialization", slow_initialization)
    own = [towers_of(cfg, tmp_path / "own", seed) for seed in (0, 1)]
    for part in (0, 1):
        assert assert_same_distribution([one[part] for one in fast], [one[part] for one in own]) >= 6


def slow_initialization(*parts):
    class Everything(nullcontext):
        def __enter__(self):
            torch.manual_seed(random_weights.seed_of(*parts))
            return self

        def keep(self, module):
            pass

    return Everything()


def test_no_two_weights_of_a_network_are_alike():
    tensors = [tensor for tensor in made("vit", 0).parameters() if tensor.std() > 0]
    for i, one in enumerate(tensors):
        assert not any(one.shape == other.shape and torch.equal(one, other) for other in tensors[:i])
    values = torch.cat([tensor.detach().flatten() / tensor.std() for tensor in tensors])
    assert abs(torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]) < 5 / math.sqrt(len(values))


# Seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["timm", "open_clip"])
def test_weights_depend_on_the_seed_and_on_nothing_else(family, tmp_path, monkeypatch):
    if family == "timm":
        options = {"model": NETWORKS["dinov2"][0], "model_args": NETWORKS["dinov2"][1]}
    else:
        options = {"config": str(write_tower(tmp_path / "tower", NATIVE))}
    identities = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        torch.manual_seed(rank)
        before = torch.get_rng_state()
        identities.append(build(family, weights="random", **options).identity)
        assert torch.equal(torch.get_rng_state(), before)
    assert identities[0] == identities[1] != build(family, weights="random", seed=1, **options).identity


def test_numbers_are_the_same_on_every_machine():
    numbers = torch.empty(70_001)
    fill(numbers, 1.0, 2.0, "somewhere", 3)
    again = torch.empty(70_001)
    fill(again, 1.0, 2.0, "somewhere", 3)
    assert torch.equal(numbers, again)
    assert numbers.mean() == pytest.approx(1, abs=0.03) and numbers.std() == pytest.approx(2, rel=0.01)
    assert numbers[[0, 1, 2, 32768, 70000]].tolist() == pytest.approx(FROZEN, abs=1e-6)


FROZEN = [3.551931, 0.642204, 1.131458, 1.833729, -1.279078]


# Cost -------------------------------------------------------------------------------------------------------------


class Drawn(TorchDispatchMode):
    """How many numbers torch itself draws."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags or func is torch.ops.aten.erfinv_.default:
            self.numbers += out.numel()
        return out


@pytest.fixture
def filled(monkeypatch) -> list[int]:
    """The sizes of all tensors that are filled, as they come."""
    sizes: list[int] = []

    def count(tensor, *rest):
        sizes.append(tensor.numel())
        fill(tensor, *rest)

    monkeypatch.setattr(random_weights, "fill", count)
    return sizes


def test_a_giants_weights_are_drawn_once_and_not_by_torch(filled):
    with Drawn() as drawn:
        encoder = build("dinov2_g", weights="random", model_args={"depth": 1})
    parameters = sum(p.numel() for p in encoder.parameters())
    assert parameters > 2e7
    assert 0.98 * parameters < sum(filled) <= parameters
    assert drawn.numbers < 0.02 * parameters  # its class token, say, is drawn and scaled: that is left to the library


@pytest.mark.parametrize("cfg", [NATIVE, TIMM], ids=["native", "timm"])
def test_only_the_tower_that_is_asked_for_is_drawn(cfg, tmp_path, filled):
    folder = write_tower(
        tmp_path / "tower", {**cfg, "text_cfg": {**cfg["text_cfg"], "vocab_size": 100_000}}, words=None
    )
    encoder = build("open_clip", config=str(folder), weights="random")
    vision = sum(p.numel() for p in encoder.parameters())
    assert 0.8 * vision < sum(filled) <= vision < 1e6
    filled.clear()
    encoder.encode_tokens(torch.zeros(1, 12, dtype=torch.long))
    text = sum(p.numel() for p in encoder.parameters()) - vision
    assert 0.9 * text < sum(filled) <= text


def test_weights_from_a_file_need_no_random_numbers(towers, filled):
    for kind in ("native0", "timm0"):
        build("open_clip", weights=str(towers[kind])).encode_text(["a red ball"])
    assert not filled


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_random_networks_are_finite_and_of_a_sensible_size(name, dtype):
    model, args = NETWORKS[name]
    encoder = build("timm", weights="random", model=model, model_args=args, dtype=dtype)
    summary, spatial = encoder(torch.rand(2, 3, *encoder.native_size, generator=torch_rng("images")))
    for features in (summary, spatial):
        if features is not None:
            assert torch.isfinite(features).all() and 1e-3 < features.std() < 30, (name, features.std())


# Whoever reads a tensor gets numbers -------------------------------------------------------------------------------


def test_a_tensor_is_filled_before_it_is_read():
    with fast_initialization("read"):
        first = torch.empty(100).normal_()
        scaled = first * 2
        second = torch.empty(10, 10).uniform_(1, 2)
        rows = second.t()[3:5]  # a view reads nothing
        total = rows.sum()
        third = torch.empty(40, 40)
        nn.init.orthogonal_(third)
        fourth = nn.init.trunc_normal_(torch.empty(1000), std=1.0, a=-1.0, b=1.0)
        copy = torch.empty(100).copy_(nn.init.normal_(torch.empty(100), mean=5.0))
    assert torch.equal(scaled, first * 2) and first.std() > 0.5
    assert torch.equal(total, second[:, 3:5].sum()) and 1 <= second.min() < second.max() <= 2
    torch.testing.assert_close(third @ third.T, torch.eye(40), atol=1e-5, rtol=0)
    assert fourth.abs().max() <= 1 and fourth.std() == pytest.approx(0.54, abs=0.05)  # of a normal cut at one σ
    assert copy.mean() == pytest.approx(5, abs=0.6) and copy.std() == pytest.approx(1, abs=0.2)


def test_the_last_word_counts_for_every_part_of_a_tensor():
    with fast_initialization("parts"):
        weight = torch.empty(300, 10).normal_(5, 1)
        weight[100:200].normal_(-5, 1)
        weight[150:160].zero_()
        weight[250:].fill_(7.0)
        constant = torch.empty(10).normal_()
        constant.zero_()
        scaled = torch.empty(3000).uniform_(0, 1)
        scaled[:1000].mul_(2).add_(10)
    assert weight[:100].mean() == pytest.approx(5, abs=0.2) and weight[200:250].mean() == pytest.approx(5, abs=0.3)
    assert weight[100:150].mean() == pytest.approx(-5, abs=0.3) and weight[160:200].mean() == pytest.approx(-5, abs=0.3)
    assert weight[:100].std() == pytest.approx(1, abs=0.2)
    assert (weight[150:160] == 0).all() and (weight[250:] == 7).all() and (constant == 0).all()
    assert 10 <= scaled[:1000].min() < scaled[:1000].max() <= 12 and scaled[1000:].max() <= 1


def test_truncated_normals_have_the_deviation_that_is_left_of_them():
    from timm.layers import lecun_normal_, trunc_normal_, trunc_normal_tf_

    for init in (
        lambda t: trunc_normal_(t, 0.5, 1.0, -1.0, 1.0),
        lambda t: trunc_normal_tf_(t, std=0.02),
        lecun_normal_,
    ):
        with fast_initialization("ours"):
            ours = torch.empty(400, 500)
            init(ours)
        with seeded("theirs"):
            theirs = torch.empty(400, 500)
            init(theirs)
        assert ours.std() == pytest.approx(theirs.std().item(), rel=0.01)
        assert ours.mean() == pytest.approx(theirs.mean().item(), abs=0.01 * theirs.std().item())


def test_other_types_and_generators_are_left_to_torch():
    def draw():
        given = torch.empty(50).normal_(generator=torch.Generator().manual_seed(3))
        return given, torch.empty(50, dtype=torch.bfloat16).normal_(), torch.empty(4, 6).t().uniform_(), torch.randn(5)

    with fast_initialization("types"):
        ours = draw()
    with seeded("types"):
        theirs = draw()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs))


def test_structures_without_memory_pass_through():
    with fast_initialization("meta"), torch.device("meta"):
        assert nn.Linear(3, 4).weight.is_meta
