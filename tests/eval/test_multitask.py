"""Several truths from one head: the truth scores almost perfectly, noise about chance, figures and losses agree with
independent formulas, and what is unknown counts for nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up import score
from pydantic import ValidationError
from torch.nn import functional as F
from worlds import Fake, Noise, World, make_split

from eval.boundaries import boundary_counts, even_thresholds
from eval.datasets.split import IGNORE
from eval.encoders import Model
from eval.outputs import OUTPUTS
from eval.outputs.found import touched_grid
from eval.outputs.values import median_direction
from eval.probes import cells
from eval.resampling import counts
from eval.suite import Cell, as_asked, figures_settings
from eval.tables import delta_table
from eval.tasks import TASKS, multitask
from teachers.errors import UserError
from teachers.features import Dims, Features
from teachers.seeding import torch_rng

ALL = ["semseg", "parts", "saliency", "normals", "boundary", "depth"]
METRICS = ["semseg mIoU", "parts mIoU", "saliency maxF", "normals mErr", "boundary odsF", "depth RMSE"]
QUICK = {"predict": ALL, "hidden": 16, "labels": 8, "steps": 8, "batch": 16, "lr": 1e-2}
LEARNT = QUICK | {"hidden": 32, "labels": 16, "lr": 3e-2, "weights": {"depth": 5}}
CLASSES, PARTS = 4, 3


def truths(part: str, count: int, shape=(16, 16)) -> dict[str, torch.Tensor]:
    """A slanted ground with an upright rectangle of one of three classes, in two parts, N×...×H×W each.

    Rectangles may be anywhere, across the picture's rim too: where a pixel is says nothing of what it is.
    """
    rng = torch_rng("rectangles", part)
    mask, parts = torch.zeros(count, *shape, dtype=torch.long), torch.zeros(count, *shape, dtype=torch.long)
    depth = 2 + torch.linspace(0.5, -0.5, shape[0])[:, None].expand(count, *shape).clone()
    for i in range(count):
        high, wide = (int(torch.randint(5, side // 2, (), generator=rng)) for side in shape)
        shift = [int(torch.randint(side, (), generator=rng)) for side in shape]
        mask[i, :high, :wide], parts[i, :high, :wide], parts[i, : high // 2, :wide] = 1 + i % 3, 1, 2
        mask[i], parts[i] = mask[i].roll(shift, (0, 1)), parts[i].roll(shift, (0, 1))
        depth[i, mask[i] > 0] = 1 + float(torch.rand((), generator=rng)) / 2
    ground, upright = (F.normalize(torch.tensor(way), dim=0)[:, None, None] for way in ([0, -1, -0.3], [0, 0, -1.0]))
    normals = torch.where(mask[:, None] > 0, upright, ground)
    edges = torch.zeros(count, *shape, dtype=torch.long)
    edges[:, :, :-1] |= (mask[:, :, 1:] != mask[:, :, :-1]).long()
    edges[:, :-1] |= (mask[:, 1:] != mask[:, :-1]).long()
    saliency = (mask > 0).long()
    return {"mask": mask, "parts": parts, "saliency": saliency, "normals": normals, "boundary": edges, "depth": depth}


class Known(Fake):
    """Features are all truths of every pixel; a picture is known by its number (blue)."""

    def __init__(self, values: dict[str, dict[str, torch.Tensor]], **about):
        super().__init__("known", Dims(None, CLASSES + PARTS + 6))
        self.patch_size, self.values = 1, values
        for name, value in about.items():
            setattr(self, name, value)

    def see(self, pixels):
        rows = []
        for number in pixels[:, 2, 0, 0].long().tolist():
            own = {kind: of[number % 128] for kind, of in self.values["train" if number >= 128 else "val"].items()}
            one_hot = [F.one_hot(own[kind], n).movedim(-1, 0) for kind, n in (("mask", CLASSES), ("parts", PARTS))]
            single = [own[kind][None] for kind in ("saliency", "boundary", "depth")]
            rows.append(torch.cat([*one_hot, own["normals"], *single]).float())
        return Features(None, torch.stack(rows))


def make_world(folder, shape=(16, 16), counts=(96, 32)) -> World:
    values = {part: truths(part, count, shape) for part, count in zip(("train", "val"), counts)}
    world = World(folder)
    world.values = values
    for part, own in values.items():
        split = make_split(part, len(own["mask"]))
        images = [split.image(i)[:, :1, :1].expand(3, *shape).clone() for i in range(split.count)]
        own = {kind: of.__getitem__ for kind, of in own.items()}
        names = {"mask_names": ("ground", "red", "green", "blue"), "part_names": ("background", "lower", "upper")}
        setattr(world, part, replace(split, image=images.__getitem__, shape=shape, **own, **names))
    return world


def spoil(world: World, part: str, **kinds) -> None:
    """Give a split other truths; None takes one away."""
    setattr(
        world,
        part,
        replace(getattr(world, part), **{k: None if v is None else v.__getitem__ for k, v in kinds.items()}),
    )


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What a head learns from the truth itself."""
    world = make_world(tmp_path_factory.mktemp("known"))
    return world.run(Known(world.values), "multitask", **LEARNT | {"steps": 300})


def test_the_truth_scores_almost_perfectly(known):
    assert list(known.metrics) == METRICS
    for name, bound in zip(METRICS[:3], (99, 98, 99)):
        assert known.metrics[name].value > bound, name
    assert known.metrics["boundary odsF"].value > 97
    assert known.metrics["normals mErr"].value < 2 and known.metrics["depth RMSE"].value < 0.05
    assert [m.direction for m in known.metrics.values()] == ["higher"] * 3 + ["lower", "higher", "lower"]
    assert all(m.counts and m.n == 32 and len(m.resamples) == 200 for m in known.metrics.values())


def test_facts_and_examples(known):
    assert set(known.facts) == {"semseg", "parts", "saliency", "boundary"}
    assert set(known.facts["parts"]["IoU"]) == {"background", "lower", "upper"}
    assert 0 < known.facts["boundary"]["threshold"] < 1
    assert len(known.examples) == 4
    for example in known.examples:
        assert example.picture.shape == (16, 16, 3) and example.truth.shape == example.answer.shape == (32, 48, 3)
        assert (np.abs(example.truth.astype(int) - example.answer) < 40).mean() > 0.9


def test_noise_scores_about_chance(world):
    found = [world.run(Noise(f"noise {i}"), "multitask", **QUICK | {"steps": 100}).metrics for i in range(3)]
    mean = {name: np.mean([metrics[name].value for metrics in found]) for name in METRICS}
    chance = {name: found[0][name].chance for name in METRICS}
    for name in ("semseg mIoU", "parts mIoU", "saliency maxF", "normals mErr"):
        assert mean[name] == pytest.approx(chance[name], abs=1), name
    # Smooth answers outline less than scattered ones; L1's best constant is the median, RMSE's the mean.
    assert chance["boundary odsF"] - 8 < mean["boundary odsF"] < chance["boundary odsF"] + 1
    assert chance["depth RMSE"] - 0.02 < mean["depth RMSE"] < 2 * chance["depth RMSE"]


def test_chance_is_what_constants_score(world):
    from sklearn.metrics import fbeta_score
    from torchmetrics.functional.classification import multiclass_jaccard_index

    found = world.run(Noise(), "multitask", **QUICK | {"labels": 16, "steps": 1}).metrics  # every pixel is asked
    train, val = world.values["train"], world.values["val"]
    for name, kind, classes in (("semseg mIoU", "mask", CLASSES), ("parts mIoU", "parts", PARTS)):
        constant = torch.full_like(val[kind], int(train[kind].flatten().mode().values))
        wanted = 100 * multiclass_jaccard_index(constant, val[kind], classes)
        assert found[name].chance == pytest.approx(float(wanted), abs=1e-3)
    salient = val["saliency"].flatten()
    wanted = 100 * fbeta_score(salient, torch.ones_like(salient), beta=0.3**0.5)
    assert found["saliency maxF"].chance == pytest.approx(wanted, abs=1e-6)
    ground = train["normals"][0, :, train["mask"][0] == 0][:, :1]  # most pixels have this one: their median
    angles = (val["normals"] * ground[..., None]).double().sum(1).clamp(-1, 1).acos().rad2deg()
    assert found["normals mErr"].chance == pytest.approx(float(angles.mean()), abs=5e-2)
    rmse = (val["depth"] - train["depth"].mean()).square().mean().sqrt()
    assert found["depth RMSE"].chance == pytest.approx(float(rmse), abs=1e-5)
    rng = np.random.default_rng(0)  # draws of our own: of these few small pictures they matter a little
    drawn = [boundary_counts(rng.random((16, 16)), t.numpy(), even_thresholds(15)) for t in val["boundary"]]
    right, all_found, true = np.sum(drawn, axis=0).T
    assert found["boundary odsF"].chance == pytest.approx(200 * (right / (all_found + true)).max(), abs=2)


def test_figures_agree_with_independent_ones_of_what_the_head_answers(world):
    from sklearn.metrics import fbeta_score
    from torchmetrics.functional.classification import multiclass_jaccard_index
    from torchmetrics.functional.regression import mean_squared_error

    ctx = world.context(Known(world.values), "multitask", **QUICK)
    found = multitask.run(ctx).metrics
    outputs = {name: OUTPUTS[name](world.train, world.val, ctx.settings) for name in ALL}
    head = multitask.fit(ctx.features("train", "backbone.spatial"), outputs, ctx.settings, 0)
    with torch.no_grad():
        answer = head(ctx.features("val", "backbone.spatial").all())
    assert answer.shape == (32, CLASSES + PARTS + 6, 8, 8)
    large = F.interpolate(answer, (16, 16), mode="bilinear", align_corners=False)
    semseg, parts, saliency, normals, boundary, depth = large.split([CLASSES, PARTS, 1, 3, 1, 1], dim=1)
    val = world.values["val"]
    for name, given, kind, classes in (("semseg mIoU", semseg, "mask", 4), ("parts mIoU", parts, "parts", 3)):
        wanted = 100 * multiclass_jaccard_index(given.argmax(1), val[kind], classes)
        assert found[name].value == pytest.approx(float(wanted), abs=1e-3)
    wanted = mean_squared_error(depth[:, 0].contiguous(), val["depth"], squared=False)
    assert found["depth RMSE"].value == pytest.approx(float(wanted), abs=1e-5)
    cosine = F.cosine_similarity(normals, val["normals"], dim=1).clamp(-1, 1)
    assert found["normals mErr"].value == pytest.approx(float(cosine.acos().rad2deg().mean()), abs=2e-2)
    salient, share = val["saliency"].flatten(), saliency.sigmoid().flatten()
    wanted = [fbeta_score(salient, share >= level / 20, beta=0.3**0.5, zero_division=0) for level in range(1, 20)]
    assert found["saliency maxF"].value == pytest.approx(100 * max(wanted), abs=1e-6)
    scores = boundary[:, 0].sigmoid().numpy()
    each = np.stack([boundary_counts(s, t.numpy(), even_thresholds(15)) for s, t in zip(scores, val["boundary"])])

    def ods(right, all_found, true):  # by precision and recall, at the best threshold for all pictures
        precision, recall = right / np.maximum(all_found, 1), right / true
        return 100 * (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()

    assert found["boundary odsF"].value == pytest.approx(ods(*each.sum(axis=0).T), abs=1e-6)
    drawn = counts(world.val.identity, 32)[7]  # how often each picture is in a resample
    again = ods(*np.concatenate([each[[i] * times] for i, times in enumerate(drawn)]).sum(axis=0).T)
    assert found["boundary odsF"].resamples[7] == pytest.approx(again, abs=1e-5)


def test_the_median_direction_is_the_least_far_of_all():
    rng = torch_rng("directions")
    ways = torch.tensor([[0.0, -1, 0]] * 5 + [[0.0, 0, -1]] * 3 + [[1.0, 0, 0]])
    normals = F.normalize(ways.repeat(40, 1) + 0.2 * torch.randn(360, 3, generator=rng), dim=1)

    def off(directions):  # mean chord, n
        return (normals[:, None] - directions).norm(dim=2).mean(dim=0)

    found = median_direction(normals)
    assert found.norm().item() == pytest.approx(1, abs=1e-6)
    everywhere = F.normalize(torch.randn(20000, 3, generator=rng), dim=1)
    assert off(found[None]) <= off(everywhere).min() + 1e-6
    assert off(found[None]) < off(F.normalize(normals.mean(0), dim=0)[None]) - 0.02


def test_losses_agree_with_their_formulas(world):
    ctx = world.context(Noise(), "multitask", **QUICK)
    chosen, rng = torch.tensor([3, 10, 4]), torch_rng("losses")
    loss, given = {}, {}
    for name in ALL:
        output = OUTPUTS[name](world.train, world.val, ctx.settings)
        given[name] = torch.randn(3, output.channels, 8, 8, generator=rng)
        loss[name] = output.loss(given[name], chosen)

    def nearest(kind):  # the truth at the centres of 8×8 cells of 2×2 pixels
        return world.values["train"][kind][chosen][..., 1::2, 1::2]

    torch.testing.assert_close(loss["semseg"], F.cross_entropy(given["semseg"], nearest("mask")))
    torch.testing.assert_close(loss["parts"], F.cross_entropy(given["parts"], nearest("parts")))
    torch.testing.assert_close(loss["depth"], F.l1_loss(given["depth"][:, 0], nearest("depth")))
    unit = given["normals"] / given["normals"].norm(dim=1, keepdim=True)
    torch.testing.assert_close(loss["normals"], 3 * F.l1_loss(unit, nearest("normals")))  # summed over x, y, z
    salient = nearest("saliency")
    share = salient.float().mean()
    two = torch.cat([torch.zeros(3, 1, 8, 8), given["saliency"]], dim=1)  # the published form: two classes, weighted
    weights = torch.stack([share, 1 - share])
    wanted = F.cross_entropy(two, salient, weights, reduction="sum") / salient.numel()
    torch.testing.assert_close(loss["saliency"], wanted)
    edges = world.values["train"]["boundary"][chosen].float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    logits = F.interpolate(given["boundary"], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    wanted = 0.05 * F.binary_cross_entropy_with_logits(logits, edges, pos_weight=torch.tensor(0.95 / 0.05))
    torch.testing.assert_close(loss["boundary"], wanted)


def test_what_is_trained_is_the_weighted_sum_of_the_losses(world, monkeypatch):
    seen = []

    def caught(head, features, loss, *rest):
        pictures = torch.arange(4)
        answer = head(features[pictures])
        seen.append((loss(answer, pictures).item(), answer))
        return head.eval()

    monkeypatch.setattr(multitask, "train", caught)
    ctx = world.context(Noise(), "multitask", **QUICK | {"weights": {"boundary": 7}})
    outputs = {name: OUTPUTS[name](world.train, world.val, ctx.settings) for name in ALL}
    multitask.fit(ctx.features("train", "backbone.spatial"), outputs, ctx.settings, 0)
    total, answer = seen[0]
    parts = [outputs[name].loss(one, torch.arange(4)) for name, one in multitask.by_output(answer, outputs).items()]
    assert total == pytest.approx(sum(w * p.item() for w, p in zip([1, 2, 5, 10, 7, 1], parts)), rel=1e-5)
    published = multitask.Weights().model_dump()
    assert published == {"semseg": 1, "parts": 2, "saliency": 5, "normals": 10, "boundary": 50, "depth": 1}


def test_unknown_and_ignored_pixels_count_for_nothing(world):
    """What stands where a truth says nothing changes neither training nor test."""
    results, hole = [], (slice(None), slice(0, 5), slice(3, 9))
    for filling in (0, 1):
        for part in ("train", "val"):
            own = {kind: of.clone() for kind, of in world.values[part].items()}
            for kind in ("mask", "parts", "saliency", "boundary"):
                own[kind][hole] = filling
                own[kind][hole] = IGNORE
                own[kind][7] = IGNORE
            own["depth"][hole] = torch.nan
            own["normals"][:, filling : filling + 1, :5, 3:9] = torch.nan  # one component is enough
            spoil(world, part, **own)
        results.append(world.run(Known(world.values), "multitask", **QUICK).metrics)
    assert results[0] == results[1]
    assert all(np.isfinite(metric.value) for metric in results[0].values())


def test_thin_truths_are_pooled_not_sampled(world):
    mask = torch.zeros(4, 16, 16, dtype=torch.long)
    mask[:, 5, 3] = 1
    mask[:, :8, 8:] = IGNORE
    spoil(world, "train", boundary=mask)
    grid = touched_grid(replace(world.train, count=4), "boundary", 4)
    assert grid[0].tolist() == [[0, 0, IGNORE, IGNORE], [1, 0, IGNORE, IGNORE], [0] * 4, [0] * 4]
    assert touched_grid(replace(world.train, count=4), "boundary", 32)[2].eq(1).sum() == 4  # larger than the picture


def test_a_label_grid_may_be_as_wide_as_the_pictures(world):
    assert [cells(labels, 4) for labels in (3, (2, 3))] == [(12, 12), (8, 12)]
    assert multitask.Head(8, 4, 5, (2, 3))(torch.zeros(2, 8, 7, 4)).shape == (2, 5, 2, 3)
    assert touched_grid(replace(world.train, count=4), "boundary", (2, 4)).shape == (4, 2, 4)
    wide = world.run(Known(world.values), "multitask", **QUICK | {"labels": [8, 12]}).metrics
    assert all(np.isfinite(metric.value) for metric in wide.values())
    with pytest.raises(ValidationError):
        world.run(Known(world.values), "multitask", **QUICK | {"labels": [8, 0]})


def test_rectangular_pictures(tmp_path):
    world = make_world(tmp_path, (12, 20), (64, 16))
    found = world.run(Known(world.values, native_size=(12, 20)), "multitask", **LEARNT | {"steps": 300})
    for name in ("semseg mIoU", "parts mIoU", "saliency maxF", "boundary odsF"):
        assert found.metrics[name].value > 90, name
    assert found.metrics["normals mErr"].value < 2 and found.metrics["depth RMSE"].value < 0.1
    assert found.examples[0].truth.shape == (24, 60, 3)


def test_a_few_quantities_and_seeds(world):
    some = QUICK | {"predict": ["depth", "semseg"]}
    runs = [world.run(Noise(), "multitask", seed, **some) for seed in (0, 0, 1)]
    assert list(runs[0].metrics) == ["depth RMSE", "semseg mIoU"] and runs[0].examples[0].truth.shape == (16, 32, 3)
    values = [run.metrics["depth RMSE"].value for run in runs]
    assert values[0] == values[1] != values[2]


def test_two_data_sets_are_two_groups_of_the_table(world):
    """The same task twice, each under its own name: columns of two groups, and the same figures' settings."""
    scores, given = [], []
    for task, group in (("pascal_context", "Pascal Context"), ("nyudv2", "NYUDv2"), ("other", None)):
        ctx = world.context(Noise(), "multitask", **QUICK | {"predict": ["depth"], "steps": 1, "group": group})
        own = score("noise", task, multitask.run(ctx).metrics, kind="multitask", group=multitask.GROUP)
        cell = Cell(Model("noise", "noise", Noise()), task, ctx.settings, 0, world.folder)
        scores.append(as_asked(own, cell))
        given.append(figures_settings(ctx.settings))
    assert given[0] == given[1] == given[2]
    columns = [(metric.group, metric.name) for metric in delta_table(scores).directions]
    assert columns == [(group, "depth RMSE") for group in ("Pascal Context", "NYUDv2", "Multi-task")]


def test_mosaics_are_filled_row_by_row():
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in range(5)]
    found = multitask.mosaic(tiles)
    assert found.shape == (4, 9, 3) and found[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
    assert multitask.mosaic(tiles[:1]).shape == (2, 3, 3) and multitask.mosaic(tiles[:4]).shape == (4, 6, 3)


def test_settings_are_checked():
    def settings(**given):
        return TASKS["multitask"].Settings(task="multitask", data="world", **given)

    for given, complaint in [
        ({}, "predict"),
        ({"predict": []}, "at least 1"),
        ({"predict": ["semseg", "edges"]}, "'semseg', 'parts', 'saliency'"),
        ({"predict": ["depth", "semseg", "depth"]}, "named more than once: depth"),
        ({"predict": ["depth"], "weights": {"depht": 2}}, "depht"),
        ({"predict": ["depth"], "weights": {"depth": 0}}, "greater than 0"),
        ({"predict": ["boundary"], "boundary_weight": 1}, "less than 1"),
    ]:
        with pytest.raises(ValidationError, match=complaint):
            settings(**given)


@pytest.mark.parametrize(
    ("name", "kind", "empty", "complaint"),
    [
        ("semseg", "mask", IGNORE, "every pixel of world/{} is ignored"),
        ("parts", "parts", IGNORE, "every pixel of world/{} is ignored"),
        ("saliency", "saliency", 0, "no pixel of value 1 in the saliency masks of world/{}"),
        ("boundary", "boundary", 0, "no pixel of value 1 in the boundaries of world/{}"),
        ("normals", "normals", torch.nan, "no known pixel in the surface normals of world/{}"),
        ("depth", "depth", torch.nan, "no known pixel in the depth of world/{}"),
    ],
)
def test_what_cannot_be_scored_is_refused(world, name, kind, empty, complaint):
    settings = QUICK | {"predict": [name], "steps": 1}
    whole = world.values["val"][kind]
    for part in ("val", "train"):
        spoil(world, part, **{kind: torch.full_like(world.values[part][kind], empty)})
        with pytest.raises(UserError, match=complaint.format(part)):
            world.run(Noise(), "multitask", **settings)
        spoil(world, "val", **{kind: whole})
    for part in ("val", "train"):
        spoil(world, part, **{kind: None})
        with pytest.raises(UserError, match="'world' has no "):
            world.run(Noise(), "multitask", **settings)
