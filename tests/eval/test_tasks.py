"""Tasks: the truth scores perfectly, noise scores chance, every metric agrees with an independent implementation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from worlds import CLASSES, NAMES, Fake, Noise, Student, Truth, World, make_split

from eval.confusion import ious, miou
from eval.datasets.split import IGNORE
from eval.resampling import counts
from eval.tasks import TASKS, knn, match, retrieval, segmentation, zero_shot
from eval.tasks.task import NotApplicable
from teachers.errors import UserError
from teachers.features import Features
from teachers.phi_s import Moments, fit
from teachers.seeding import torch_rng


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_every_task_says_what_it_is():
    for module in TASKS.values():
        assert module.VERSION >= 1 and module.GROUP and len(module.PROTOCOL) > 80
        assert module.FIT in ("crop", "stretch", "pad") and set(module.SPLITS) <= {"train", "val"}
        assert "seeds" in module.Settings.model_fields or not module.SEEDED


# --- k-NN ------------------------------------------------------------------------------------------------------------


def test_knn_agrees_with_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    rng = torch_rng("knn")
    bank, queries = torch.randn(300, 6, generator=rng), torch.randn(90, 6, generator=rng)
    labels = torch.randint(0, 5, (300,), generator=rng)
    oracle = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    wanted = oracle.fit(bank.numpy(), labels.numpy()).predict_proba(queries.numpy())
    scores = knn.vote(bank, labels, queries, 5, 20, 0.07)
    np.testing.assert_allclose(F.normalize(scores, p=1).numpy(), wanted, rtol=1e-5)


def test_knn_of_the_truth_and_of_noise(world):
    truth = world.run(Truth(), "knn").metrics["k-NN top-1"]
    assert truth.value == 100 and truth.n == 48 and truth.chance == 25 and truth.direction == "higher"
    noise = [world.run(Noise(f"noise {i}"), "knn").metrics["k-NN top-1"].value for i in range(8)]
    assert abs(np.mean(noise) - 25) < 4 * 43.3 / np.sqrt(8 * 48)  # four standard errors of a coin that knows nothing


def test_knn_refuses_what_it_cannot_score(world):
    with pytest.raises(UserError, match="k = 500"):
        world.run(Truth(), "knn", k=500)
    world.train = make_split("train", 3)
    result = world.run(Truth(), "knn", k=1)
    assert result.facts["unseen"] == ["ring"] and result.metrics["k-NN top-1"].value == 75


# --- zero-shot -------------------------------------------------------------------------------------------------------


def test_zero_shot_of_the_truth_and_of_noise(world):
    truth = world.run(Truth(), "zero_shot", templates=["a {}", "the {}"]).metrics["zero-shot top-1"]
    assert truth.value == 100 and truth.chance == 25
    found = [world.run(Noise(f"n{i}"), "zero_shot", templates=["a {}"]).metrics for i in range(8)]
    noise = [metrics["zero-shot top-1"].value for metrics in found]
    assert abs(np.mean(noise) - 25) < 4 * 43.3 / np.sqrt(8 * 48)


def test_zero_shot_averages_templates_as_directions():
    texts = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(zero_shot.class_vector(texts), torch.tensor([0.5, 0.5]).sqrt())


def test_zero_shot_uses_the_data_sets_own_prompts():
    split = make_split()
    assert zero_shot.class_prompts(split, ["one {}"])[1] == ["one cube"]
    assert len(zero_shot.class_prompts(split, "openai")[0]) == 80
    own = replace(split, prompts={name: [name.upper()] for name in NAMES})
    assert zero_shot.class_prompts(own, "openai")[2] == ["CONE"]


def test_zero_shot_goes_through_the_head_with_a_text_tower(world):
    mute = Fake("mute")
    mute.see = lambda pixels: Features(torch.zeros(len(pixels), 4), torch.zeros(len(pixels), 4, 4, 4))
    student = Student({"mute": (mute, mute), "clip": (Truth("head"), Truth("teacher"))})
    result = world.run(student, "zero_shot", templates=["a {}"])
    assert result.facts["head"] == "clip" and result.metrics["zero-shot top-1"].value == 100
    with pytest.raises(UserError, match="no head 'clop'.*\n.*mute, clip"):
        world.run(student, "zero_shot", head="clop")
    for deaf in (mute, Student({"mute": (mute, mute)}, "deaf student")):
        with pytest.raises(NotApplicable, match="no text tower"):
            world.run(deaf, "zero_shot")


# --- retrieval -------------------------------------------------------------------------------------------------------


def test_retrieval_ranks_agree_with_brute_force():
    rng = torch_rng("ranks")
    queries, candidates = torch.randn(12, 3, generator=rng), torch.randn(20, 3, generator=rng)
    right = torch.rand(12, 20, generator=rng) < 0.15
    right[torch.arange(12), torch.arange(12)] = True
    got = retrieval.ranks(queries, candidates, right)
    for row in range(12):
        order = sorted(range(20), key=lambda j: -float(F.cosine_similarity(queries[row], candidates[j], dim=0)))
        assert got[row] == next(place for place, j in enumerate(order) if right[row, j])


def test_retrieval_ties_count_against_the_model():
    for count, width in ((5, 3), (5, 512), (17, 512), (120, 37)):  # wide ones are equal but for rounding
        same, queries = torch.randn(2, count, width, generator=torch.Generator().manual_seed(count))
        same = same[:1].expand(count, -1).contiguous()
        assert retrieval.ranks(queries, same, torch.eye(count, dtype=torch.bool)).tolist() == [count - 1] * count


def test_retrieval_chance_is_exact():
    right = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    orders = list(itertools.permutations(range(5)))
    for k in (1, 2, 4):
        wanted = [np.mean([any(row[j] for j in order[:k]) for order in orders]) for row in right]
        assert retrieval.chance(right, k) == pytest.approx(100 * np.mean(wanted))
        weighted = 100 * np.average(wanted, weights=[3, 1])
        assert retrieval.chance(right, k, asked=torch.tensor([3, 1])) == pytest.approx(weighted)


def test_retrieval_of_the_truth_and_of_noise(world):
    metrics = world.run(Truth(), "retrieval").metrics
    assert [metrics[f"{way} R@{k}"].value for way in ("image→text", "text→image") for k in (1, 5, 10)] == [100] * 6
    assert metrics["text→image R@1"].n == 96 and metrics["image→text R@1"].n == 48
    values = {}
    for i in range(8):
        for name, metric in world.run(Noise(f"n{i}"), "retrieval").metrics.items():
            values.setdefault((name, metric.chance), []).append(metric.value)
    for (name, chance), found in values.items():
        spread = 100 * np.sqrt(chance / 100 * (1 - chance / 100) / (8 * 48))
        assert abs(np.mean(found) - chance) < 4 * spread, name


def test_captions_with_the_same_words_belong_to_both_pictures(world):
    world.val = replace(make_split(count=4), captions=lambda i: ["picture 0"] if i < 2 else [f"picture {i}"])
    result = world.run(Truth(), "retrieval")
    assert result.facts["texts"] == 3
    assert result.metrics["text→image R@1"].value == 100  # picture 0 answers for both that own the caption
    assert result.metrics["text→image R@1"].n == 4


@pytest.mark.parametrize("own, complaint", [([], "has no caption"), (["picture 2", " "], "has a blank caption")])
def test_a_picture_that_no_caption_tells_of_is_named(world, own, complaint):
    world.val = replace(make_split(count=4), captions=lambda i: own if i == 2 else [f"picture {i}"])
    with pytest.raises(UserError, match=f"picture 2 of world/val {complaint}"):
        world.run(Truth(), "retrieval")


# --- segmentation ----------------------------------------------------------------------------------------------------


def jaccard(predicted, masks):
    from torchmetrics.classification import MulticlassJaccardIndex

    return 100 * float(MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=255)(predicted, masks))


def test_segmentation_of_the_truth_and_of_noise(world):
    truth = world.run(Truth(), "segmentation", steps=150, labels=16, lr=0.05).metrics["mIoU"]
    masks = torch.stack([world.val.mask(i) for i in range(world.val.count)])
    cells = F.one_hot(masks[:, ::4, ::4], CLASSES).permute(0, 3, 1, 2).float()
    enlarged = F.interpolate(cells, (16, 16), mode="bilinear", align_corners=False).argmax(1)
    best = jaccard(enlarged, masks)  # the truth of each cell, enlarged: round corners are all that is lost
    assert 90 < best - 1 < truth.value and truth.direction == "higher" and truth.unit == "%"
    noise = world.run(Noise(), "segmentation", steps=150, labels=16).metrics["mIoU"]
    assert 5 < truth.chance < 9  # a quarter of the area for one class of four
    assert noise.value < 20  # features that know nothing: at best each class a random quarter, IoU 1/7


def test_miou_agrees_with_torchmetrics(world):
    world.val = make_split(ignore=True)
    ctx = world.context(Noise(), "segmentation", steps=20, labels=16)
    result = segmentation.run(ctx)
    labels = segmentation.label_grid(world.train, "mask", 16)
    probe = segmentation.fit(ctx.features("train", "backbone.spatial"), labels, CLASSES, ctx.settings, 0)
    maps = ctx.features("val", "backbone.spatial").all()
    with torch.no_grad():
        large = F.interpolate(probe(maps), (16, 16), mode="bilinear", align_corners=False)
    masks = torch.stack([world.val.mask(i) for i in range(world.val.count)])
    assert result.metrics["mIoU"].value == pytest.approx(jaccard(large.argmax(1), masks), abs=1e-3)


def test_a_resample_judges_the_classes_that_it_has():
    """Five rare classes in two pictures each; one stray pixel of each elsewhere must not decide the interval."""
    confusions = np.zeros((2, 60, 10, 10))
    for common in range(5):
        confusions[:, :, common, common], confusions[:, :, common, (common + 1) % 5] = 900, 100
    for rare in range(5, 10):
        for picture in (rare, rare + 20):
            confusions[:, picture, rare, rare], confusions[:, picture, rare, 0] = 300, 100
        confusions[1, 40 + rare, 0, rare] += 1
        confusions[1, 40 + rare, 0, 0] -= 1
    split = SimpleNamespace(identity="x", scenes=None, count=60)
    clean, stray = (np.array(miou(own, 0, split).resamples) for own in confusions)
    assert np.std(stray - clean) < 0.1 and np.std(stray) < 1
    draws = counts("x", 60)
    for resample, drawn in zip(stray, draws):  # as a test set with just these pictures would be scored
        left = np.repeat(confusions[1], drawn, axis=0).sum(axis=0)
        own = ious(left)[left.sum(axis=1) > 0]
        assert resample == pytest.approx(100 * own.mean(), abs=1e-4)


def test_ious_leave_out_what_does_not_occur():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(ious(confusion), [0.75, 0.8, np.nan])


def test_segmentation_seeds_differ_and_repeat(world):
    first, again, other = (
        world.run(Noise(), "segmentation", seed, steps=10, labels=8).metrics["mIoU"].value for seed in (0, 0, 1)
    )
    assert first == again != other


def test_segmentation_of_masks_that_are_all_ignored_is_refused(world):
    world.val = replace(world.val, mask=lambda i: torch.full((16, 16), 255))
    with pytest.raises(UserError, match="every pixel of world/val is ignored"):
        world.run(Truth(), "segmentation", steps=1)
    world.train = replace(world.train, mask=None)
    with pytest.raises(UserError, match="has no masks"):
        world.run(Truth(), "segmentation", steps=1)


def test_a_class_without_training_pixels_is_missed_and_named(world):
    mask = world.train.mask
    world.train = replace(world.train, mask=lambda i: mask(i).masked_fill(mask(i) == 2, IGNORE))
    result = world.run(Truth(), "segmentation", steps=150, labels=16, lr=0.05)
    ious = result.facts["IoU"]
    assert result.facts["unseen"] == ["cone"] and ious["cone"] == 0 and min(ious["ball"], ious["cube"]) > 40
    assert result.metrics["mIoU"].value == pytest.approx(np.mean(list(ious.values())), abs=0.1)  # it counts as missed
    assert world.run(Noise(), "segmentation", steps=1, labels=16).facts["unseen"] == ["cone"]


def test_pictures_whose_masks_are_empty_spoil_nothing(world):
    train, val = world.train.mask, world.val.mask
    blank = torch.full((16, 16), IGNORE)
    world.train = replace(world.train, mask=lambda i: blank if i < 40 else train(i))
    world.val = replace(world.val, mask=lambda i: blank if i % 2 else val(i))
    result = world.run(Truth(), "segmentation", steps=150, batch=4, labels=16, lr=0.05)
    assert result.metrics["mIoU"].value > 90 and result.facts["unseen"] == []
    assert len(result.metrics["mIoU"].resamples) == 200


# --- teacher match ---------------------------------------------------------------------------------------------------


def test_match_of_the_teacher_itself_is_zero_and_of_the_best_constant_one(world):
    teacher = Truth("teacher")
    constant = Fake("constant")
    images = torch.stack([world.val.image(i) for i in range(world.val.count)]).float()
    seen = teacher.see(images)
    flat = Features(F.normalize(seen.summary).mean(0), seen.spatial.mean((0, 2, 3)))
    constant.dims = teacher.dims
    constant.see = lambda pixels: Features(
        flat.summary.expand(len(pixels), -1), flat.spatial[None, :, None, None].expand(len(pixels), -1, 4, 4)
    )
    metrics = world.run(Student({"a": (Truth("head"), teacher), "b": (constant, teacher)}), "match").metrics
    assert metrics["feature error a"].value == pytest.approx(0, abs=1e-9)
    assert metrics["summary error a"].value == pytest.approx(0, abs=1e-6)
    assert metrics["feature error b"].value == pytest.approx(1, abs=1e-5) and metrics["feature error b"].chance == 1
    assert metrics["summary error b"].value == pytest.approx(metrics["summary error b"].chance, abs=1e-5)
    assert metrics["feature cosine a"].value == pytest.approx(1, abs=1e-6)
    assert not any(metric.counts for metric in metrics.values())


def test_match_is_the_same_in_phi_s_space():
    rng = torch_rng("match")
    target = torch.randn(9, 12, 3, 4, generator=rng) @ torch.randn(4, 4, generator=rng) + 2
    predicted = target + torch.randn(target.shape, generator=rng)

    def error(x, t):
        sums = match.squared_errors(x, t, t.mean((0, 2, 3), keepdim=True)).sum(0)
        return float(sums[0] / sums[1])

    moments = Moments(12)
    moments.update(target)
    phi_s = fit(moments)
    assert error(phi_s(predicted), phi_s(target)) == pytest.approx(error(predicted, target), rel=1e-4)


def test_match_resizes_the_students_map_to_the_teachers_grid(world):
    teacher = Truth("fine teacher")
    teacher.native_size = (32, 32)  # 8×8 cells, the student's 4×4
    student = Student({"a": (Truth("head"), teacher)})
    result = world.run(student, "match")
    assert result.facts["teacher sizes"] == {"a": [32, 32]}
    assert 0 < result.metrics["feature error a"].value < 1


def test_feature_cosine_agrees_with_torch_and_its_chance_is_the_best_constants(world):
    teacher, head, noise = Noise("teacher", CLASSES), Noise("head", CLASSES), Noise("more", CLASSES)
    teacher.see = lambda pixels: Features(noise.see(pixels).summary, noise.see(pixels).spatial + 0.5)  # about no zero
    result = world.run(Student({"a": (head, teacher)}), "match")
    images = torch.stack([world.val.image(i) for i in range(world.val.count)]).float()
    ours, theirs = head.see(images).spatial, teacher.see(images).spatial
    cosine, error = result.metrics["feature cosine a"], (ours - theirs).square().mean(dim=(0, 2, 3))
    assert cosine.value == pytest.approx(float(F.cosine_similarity(ours, theirs).mean()), abs=1e-5)
    assert cosine.direction == "higher" and not cosine.counts
    cells = F.normalize(theirs).movedim(1, -1).flatten(0, -2).double()
    tried = [float(F.cosine_similarity(cells, direction[None].double()).mean()) for direction in torch.randn(
        2000, CLASSES, generator=torch_rng("directions"))]  # fmt: skip
    assert max(tried) <= cosine.chance + 1e-9 and cosine.chance < max(tried) + 0.01
    assert result.facts["channel errors"]["a"]["MSE"] == pytest.approx(float(error.mean()), rel=1e-5)
    deviation = float(error.var(correction=0)) ** 0.5
    assert result.facts["channel errors"]["a"]["deviation over channels"] == pytest.approx(deviation, rel=1e-3)


def test_rank_me_is_e_to_the_entropy_of_the_singular_values(world):
    summaries = torch.randn(40, 6, generator=torch_rng("rank"), dtype=torch.float64)
    summaries[:, 3:] = summaries[:, :3] * 0.5  # three directions, whatever the width
    squares = np.linalg.eigvalsh((summaries.T @ summaries).numpy()).clip(0) ** 0.5
    shares = squares / squares.sum()
    entropy = -sum(p * np.log(p) for p in shares if p > 1e-6)
    assert match.rank_me(summaries) == pytest.approx(np.exp(entropy), rel=1e-4) and match.rank_me(summaries) < 3
    assert match.rank_me(torch.eye(5)) == pytest.approx(5)
    assert match.rank_me(torch.ones(7, 3)) == pytest.approx(1) and match.rank_me(torch.zeros(7, 3)) == 1
    found = world.run(Student({"a": (Truth("head"), Truth("teacher"))}), "match").metrics["RankMe"]
    images = torch.stack([world.val.image(i) for i in range(world.val.count)]).float()
    assert found.value == pytest.approx(match.rank_me(Truth().see(images).summary))
    assert found.direction == "higher" and found.chance == 1 and found.n == 48 and not found.counts


def test_figures_that_depend_on_a_teacher_say_so(world):
    teacher = Truth("teacher")
    student = Student({"clip": (Truth("head"), teacher)})
    for task, wanted in {"zero_shot": [teacher], "retrieval": [teacher], "match": [teacher], "knn": []}.items():
        assert TASKS[task].partners(world.context(student, task)) == wanted
        assert TASKS[task].partners(world.context(teacher, task)) == []


def test_match_needs_heads(world):
    with pytest.raises(NotApplicable):
        TASKS["match"].parts(world.context(Truth(), "match"))
