"""SAM: our path through its decoder is SAM's own, the box itself is chance, and what cannot be asked says why."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import Fake, Student, World

from eval.datasets.split import Instances, Split
from eval.feature_cache import MEAN_COLOUR, View, placed
from eval.sam_decoder import SamDecoder, load
from eval.tasks import TASKS, sam
from eval.tasks.task import NotApplicable
from teachers.errors import UserError
from teachers.features import Dims, Features
from teachers.seeding import numpy_rng, seeded, torch_rng

transformers = pytest.importorskip("transformers", reason="SAM's decoder is transformers' (the extra `language`)")

SIDE, PATCH, WIDTH = 64, 8, 32  # of the tiny SAM
SHAPES = [(48, 64), (64, 40), (64, 64), (32, 64)]  # pictures whose longer side is SAM's: nothing is resized


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny SAM with random weights, as `save_pretrained` leaves it."""
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": WIDTH, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "mlp_dim": 64, "image_size": SIDE, "patch_size": PATCH, "window_size": 4,
            "global_attn_indexes": [1], "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "patch_size": PATCH, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )  # fmt: skip
    with seeded("a tiny SAM"):
        model = transformers.SamModel(config)
        for weight in model.parameters():  # fresh ones are so small that every mask would be flat
            weight.data.add_(torch.randn(weight.shape) * 0.2)
    model.save_pretrained(folder := tmp_path_factory.mktemp("sam"))
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return transformers.SamModel.from_pretrained(folder).eval()


class Trunk(Fake):
    """SAM's own image encoder up to its neck."""

    def __init__(self, whole, name: str = "sam_tiny"):
        super().__init__(name, Dims(None, WIDTH))
        self.vision = whole.vision_encoder
        self.native_size, self.patch_size, self.resolution_flexible = (SIDE, SIDE), PATCH, False

    def see(self, pixels):
        state = self.vision.patch_embed(whitened(pixels)) + self.vision.pos_embed
        for layer in self.vision.layers:
            state = layer(state)
        return Features(None, state.permute(0, 3, 1, 2))


def whitened(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels / 255 - mean[:, None, None]) / std[:, None, None]


class Flat(Fake):
    """Any encoder of that width and grid."""

    def __init__(self, name: str, width: int = WIDTH, side: int = SIDE):
        super().__init__(name, Dims(None, width))
        self.native_size, self.patch_size, self.resolution_flexible = (side, side), PATCH, False

    def see(self, pixels):
        grid = (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH)
        return Features(None, torch.randn(len(pixels), self.dims.spatial, *grid, generator=torch_rng(self.name)))


def ellipse(box: torch.Tensor, size) -> torch.Tensor:
    """The largest ellipse in a box, H×W bool."""
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 < 1


def make_things(number: int, size, count: int) -> Instances:
    rng = numpy_rng("sam things", number)
    low = rng.uniform(0, 0.5, (count, 2))
    high = low + rng.uniform(0.2, 0.5, (count, 2))
    boxes = torch.from_numpy(np.concatenate([low, high], axis=1) * ([size[1], size[0]] * 2)).float().reshape(-1, 4)
    masks = torch.stack([ellipse(box, size) for box in boxes]) if count else torch.zeros(0, *size, dtype=torch.bool)
    flags = torch.zeros(count, dtype=torch.bool)
    return Instances(boxes, torch.zeros(count, dtype=torch.long), lambda: masks, masks.flatten(1).sum(1).float(), flags)


def make_split(shapes=SHAPES, counts=(3, 40, 0, 1), change=lambda index, things: things) -> Split:
    """Pictures of noise with ellipses in them, some more than the decoder takes at once, one without any."""
    truths = [change(i, make_things(i, size, count)) for i, (size, count) in enumerate(zip(shapes, counts))]
    rng = torch_rng("sam pictures")
    images = [torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8) for size in shapes]
    return Split(
        data="world", part="val", count=len(truths), identity=f"sam-{shapes}", source="a test",
        image=lambda index: images[index], instances=lambda index: truths[index], thing_names=("ball",),
    )  # fmt: skip


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, val=make_split())


def brute_iou(answer: np.ndarray, truth: np.ndarray) -> float:
    pairs = list(zip(answer.flatten().tolist(), truth.flatten().tolist()))
    return sum(a and b for a, b in pairs) / sum(a or b for a, b in pairs)


# --- the same as SAM itself -----------------------------------------------------------------------------------------


def processor():
    size = {"height": SIDE, "width": SIDE}
    return transformers.SamProcessor(transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=size))


def own_answer(whole, split: Split, index: int, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SamModel from pixels to masks, its processor placing boxes and masks: (logits n×m×m, masks n×H×W)."""
    prepared = processor()(split.image(index), input_boxes=[boxes.tolist()], return_tensors="pt")
    frame = View(split, (SIDE, SIDE), "pad").image(index)
    np.testing.assert_allclose(whitened(frame.float()), prepared["pixel_values"][0], atol=0.01)  # the colour is rounded
    with torch.no_grad():
        logits = whole(
            whitened(frame[None].float()), input_boxes=prepared["input_boxes"].float(), multimask_output=False
        ).pred_masks
    shapes = prepared["original_sizes"], prepared["reshaped_input_sizes"]
    return logits[0, :, 0], processor().post_process_masks(logits, *shapes)[0][:, 0]


def test_our_path_is_sams_own_forward(folder, whole, world):
    decoder, split, trunk = load(folder), world.val, Trunk(whole)
    for index, size in enumerate(SHAPES):
        boxes = split.instances(index).boxes
        if len(boxes):
            frame = View(split, (SIDE, SIDE), "pad").image(index)
            with torch.no_grad():
                maps = trunk(frame[None].float() / 255).spatial[0]
            logits, masks = own_answer(whole, split, index, boxes)
            assert 0.02 < masks.float().mean() < 0.98  # flat masks would agree whatever is done
            torch.testing.assert_close(decoder(maps, boxes), logits, rtol=1e-5, atol=1e-5)
            assert (decoder.masks(maps, boxes, size, SIDE) == masks).float().mean() > 0.9999


def test_the_figure_is_that_of_sam_itself_and_the_filled_box_is_chance(folder, whole, world):
    result = world.run(Trunk(whole), "sam", weights=str(folder))
    found, filled = [], []
    for index, size in enumerate(SHAPES):
        things = world.val.instances(index)
        if len(things.boxes):
            answers = own_answer(whole, world.val, index, things.boxes)[1]
            found += [brute_iou(a.numpy(), t.numpy()) for a, t in zip(answers, things.masks())]
        for box, truth in zip(things.boxes.tolist(), things.masks()):
            inside = np.array(
                [
                    [box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3] for x in range(size[1])]
                    for y in range(size[0])
                ]
            )
            filled.append(brute_iou(inside, truth.numpy()))
    metric = result.metrics["mask IoU"]
    assert metric.value == pytest.approx(100 * np.mean(found), abs=0.01)
    assert metric.chance == pytest.approx(100 * np.mean(filled), abs=1e-9)
    assert metric.chance == pytest.approx(100 * np.pi / 4, abs=3)  # of an ellipse in its box
    assert (metric.n, metric.direction, metric.unit) == (44, "higher", "%") and len(metric.resamples) == 200
    assert result.facts == {"head": "backbone", "left out": {"crowds": 0, "things without a pixel": 0}}
    assert [example.answer.shape for example in result.examples] == [(*size, 3) for size in SHAPES]


# --- where things are -----------------------------------------------------------------------------------------------


class DrawsBoxes(SamDecoder):
    """A decoder that answers every box with the box, in SAM's frame."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.frame = SIDE

    def forward(self, maps, boxes):
        return torch.where(sam.fill(boxes, (SIDE, SIDE)), 1.0, -1.0)


@pytest.mark.parametrize("frame", [SIDE, SIDE // 2])
@pytest.mark.parametrize("size", [(64, 64), (96, 128), (100, 60), (31, 47)])
def test_boxes_and_masks_meet_at_every_size(size, frame):
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.75], [0.25, 0.5, 1.0, 1.0], [0.125, 0.125, 0.875, 0.5]])
    boxes = boxes * torch.tensor([size[1], size[0]]).repeat(2)
    masks = DrawsBoxes().masks(torch.zeros(1, 1, 1), boxes, size, frame)
    assert masks.shape == (3, *size)
    assert float(sam.iou(masks, sam.fill(boxes, size)).min()) > 0.88  # a row of 64 is a fiftieth of a box's side


def test_a_map_of_another_grid_is_resized_to_sams(folder):
    decoder, boxes = load(folder), torch.tensor([[8.0, 8.0, 40.0, 32.0]])
    constant = torch.randn(WIDTH, 1, 1, generator=torch_rng("constant"))
    wanted = decoder(constant.expand(-1, 8, 8), boxes)
    for grid in ((4, 4), (16, 16)):
        torch.testing.assert_close(decoder(constant.expand(-1, *grid), boxes), wanted)


def test_padded_pictures_keep_their_aspect_in_the_corner():
    split = make_split()
    view = View(split, (SIDE, SIDE), "pad")
    image = view.image(0)
    assert image.shape == (3, SIDE, SIDE) and image.dtype == torch.uint8
    assert torch.equal(image[:, :48], split.image(0))
    assert (image[:, 48:] == torch.tensor(MEAN_COLOUR)[:, None, None]).all()
    assert len({View(split, (SIDE, SIDE), fit).key for fit in ("crop", "stretch", "pad")}) == 3
    square = replace(split, shape=(32, 32))
    assert View(square, (SIDE, SIDE), "pad").key == View(square, (SIDE, SIDE), "stretch").key
    for size in ((427, 640), (640, 427), (333, 500), (1, 999)):
        wanted = processor().image_processor._get_preprocess_shape(size, 1024)
        assert placed(size, (1024, 1024)) == tuple(max(side, 1) for side in wanted)
    assert placed((100, 50), (32, 64)) == (32, 16)


# --- what is asked, and what cannot be ------------------------------------------------------------------------------


def test_crowds_and_things_without_a_pixel_are_left_out(folder, whole, world):
    def change(index, things):
        if index != 1:
            return things
        masks, crowd = things.masks(), things.crowd.clone()
        masks[:2], crowd[3] = False, True
        return replace(things, masks=lambda: masks, crowd=crowd)

    world.val = make_split(change=change)
    result = world.run(Trunk(whole), "sam", weights=str(folder))
    assert result.metrics["mask IoU"].n == 41
    assert result.facts["left out"] == {"crowds": 1, "things without a pixel": 2}
    world.val = make_split(counts=(0, 0, 0, 0))
    with pytest.raises(UserError, match="no mask of a thing in any picture of world/val"):
        world.run(Trunk(whole), "sam", weights=str(folder))
    world.val = replace(make_split(), instances=None)
    with pytest.raises(UserError, match="has no instances"):
        world.run(Trunk(whole), "sam", weights=str(folder))


def student(**heads: Fake) -> Student:
    model = Student({name: (head, head) for name, head in heads.items()})
    model.native_size, model.patch_size, model.resolution_flexible = (SIDE, SIDE), PATCH, False
    model.see = Flat("backbone").see
    return model


def test_the_head_that_learnt_from_sam_is_used(folder, world):
    model = student(clip=Flat("clip"), sam=Flat("sam"), sam2=Flat("sam2"))
    assert world.run(model, "sam", weights=str(folder)).facts["head"] == "sam"
    assert world.run(model, "sam", weights=str(folder), head="clip").facts["head"] == "clip"
    named = student(one=Flat("one"), two=Flat("two"))
    named.adaptor("two").source = {"encoder": "timm", "options": {"model": "samvit_tiny"}}
    assert TASKS["sam"].parts(world.context(named, "sam", weights=str(folder)))[0][2] == "two.spatial"
    with pytest.raises(UserError, match="no head 'clop'\n.*backbone, clip, sam, sam2"):
        world.run(model, "sam", weights=str(folder), head="clop")
    with pytest.raises(UserError, match=f"the map of thin has width 8\n.*{WIDTH}, which the neck"):
        world.run(student(thin=Flat("sam", width=8)), "sam", weights=str(folder), head="thin")


@pytest.mark.parametrize("name", ["sam_h", "sam_h bilinear 2x", "my_sam", "SAM2", "samvit_huge"])
def test_names_of_sams(name):
    assert sam.speaks_sam("backbone", Flat(name))


@pytest.mark.parametrize("name", ["dfn_clip", "sample", "samurai", "balsam"])
def test_names_of_others(name):
    assert not sam.speaks_sam("backbone", Flat(name)) and not sam.speaks_sam(name, Flat("x"))


def test_what_does_not_apply(folder, world, tmp_path):
    with pytest.raises(NotApplicable, match=r"no SAM weights at .*nowhere; hf download facebook/sam-vit-huge"):
        world.run(Flat("sam_tiny"), "sam", weights=str(tmp_path / "nowhere"))
    with pytest.raises(NotApplicable, match=f"the model is no SAM of width {WIDTH}"):
        world.run(Flat("clip"), "sam", weights=str(folder))
    with pytest.raises(NotApplicable, match="the model is no SAM"):
        world.run(Flat("sam_tiny", width=8), "sam", weights=str(folder))
    with pytest.raises(NotApplicable, match="no head learnt from a SAM"):
        world.run(student(clip=Flat("clip")), "sam", weights=str(folder))


def test_mistakes(folder, world, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(UserError, match="broken has no readable config.json"):
        world.run(Flat("sam_tiny"), "sam", weights=str(broken))
    (broken / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="holds a model of type 'clip'"):
        world.run(Flat("sam_tiny"), "sam", weights=str(broken))
    (broken / "config.json").write_text((folder / "config.json").read_text())
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(UserError, match="the SAM in .*broken cannot be read"):
        world.run(Flat("sam_tiny"), "sam", weights=str(broken))
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.startswith("mask_decoder"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, broken / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks weights, such as {lost}"):
        world.run(Flat("sam_tiny"), "sam", weights=str(broken))
    wide = Flat("sam_tiny")
    wide.native_size = (SIDE, 2 * SIDE)
    with pytest.raises(UserError, match="would be shown 64×128 pixels"):
        world.run(wide, "sam", weights=str(folder))


def test_the_decoder_is_part_of_the_key(folder, world, tmp_path):
    context = world.context(Flat("sam_tiny"), "sam", weights=str(folder))
    (decoder,) = TASKS["sam"].partners(context)
    assert decoder.identity == load(folder).identity
    (tmp_path / "config.json").write_text("{}")
    (other,) = TASKS["sam"].partners(world.context(Flat("sam_tiny"), "sam", weights=str(tmp_path)))
    assert other.identity != decoder.identity
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))  # others, as many bytes
    assert TASKS["sam"].partners(context)[0].identity != decoder.identity
