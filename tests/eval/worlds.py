"""Small worlds with known answers: splits that need no file, encoders whose features are the truth, or noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from eval.datasets.split import IGNORE, Split
from eval.encoders import Model
from eval.feature_cache import FeatureCache
from eval.tasks import TASKS
from eval.tasks.task import Context
from teachers.features import Dims, Encoder, Features
from teachers.seeding import torch_rng

CLASSES, SIDE, CELL = 4, 16, 4
NAMES = ("ball", "cube", "cone", "ring")


def make_split(part: str = "val", count: int = 48, ignore: bool = False) -> Split:
    """Pictures that spell out their truth: red = mask class of each 4×4 cell, green = label, blue = their number.

    Training pictures are numbered from 128, so that no picture is in both parts.
    """
    rng = torch_rng("worlds", part)
    labels = torch.arange(count) % CLASSES
    cells = torch.randint(0, CLASSES, (count, SIDE // CELL, SIDE // CELL), generator=rng)
    masks = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    images = torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8)
    images[:, 0], images[:, 1] = masks.to(torch.uint8), labels[:, None, None].to(torch.uint8)
    first = 128 if part == "train" else 0
    images[:, 2] = torch.arange(first, first + count)[:, None, None].to(torch.uint8)
    if ignore:
        masks = masks.clone()
        masks[:, :, :3] = IGNORE
    return Split(
        data="world", part=part, count=count, identity=f"world-{part}-{count}-{ignore}", source="a test",
        image=lambda i: images[i], label=lambda i: int(labels[i]), mask=lambda i: masks[i],
        captions=lambda i: [f"picture {i}", f"number {i}"], class_names=NAMES, mask_names=NAMES, shape=(SIDE, SIDE),
    )  # fmt: skip


class Fake(Encoder):
    """An encoder of 16-pixel pictures in 4-pixel cells that counts its calls."""

    def __init__(self, name: str, dims: Dims | None = None):
        super().__init__()
        self.name = self.identity = name
        self.patch_size, self.native_size, self.resolution_flexible = CELL, (SIDE, SIDE), True
        self.dims, self.licence, self.calls = dims or Dims(CLASSES, CLASSES), "none", 0

    def forward(self, images):
        self.check(images)
        self.calls += 1
        return self.see((images * 255).round())


class Truth(Fake):
    """Features are the truth itself, one-hot; texts are embedded where their picture or class is."""

    def __init__(self, name: str = "truth"):
        super().__init__(name, Dims(CLASSES + 256, CLASSES))

    def see(self, pixels):
        label = F.one_hot(pixels[:, 1, 0, 0].long(), CLASSES).float()
        number = F.one_hot(pixels[:, 2, 0, 0].long(), 256).float()
        mask = F.one_hot(pixels[:, 0, ::CELL, ::CELL].long(), CLASSES).permute(0, 3, 1, 2).float()
        return Features(torch.cat([label, 0.5 * number], dim=1), mask)

    @property
    def has_text(self):
        return True

    def encode_text(self, texts):
        rows = torch.zeros(len(texts), CLASSES + 256)
        for row, text in zip(rows, texts):
            name = next((i for i, name in enumerate(NAMES) if name in text), None)
            row[CLASSES + int(text.split()[-1]) if name is None else name] = 1
        return rows


class Noise(Fake):
    """Features that know nothing of the picture (but are the same for the same one)."""

    def __init__(self, name: str = "noise", width: int = 8):
        super().__init__(name, Dims(width, width))
        self.width = width

    def see(self, pixels):
        rows, grid = [], (pixels.shape[2] // CELL, pixels.shape[3] // CELL)
        for number in pixels[:, 2, 0, 0].long().tolist():
            rows.append(torch.randn(self.width, 1 + grid[0] * grid[1], generator=torch_rng(self.name, number)))
        rows = torch.stack(rows)
        return Features(rows[:, :, 0], rows[:, :, 1:].unflatten(2, grid))

    @property
    def has_text(self):
        return True

    def encode_text(self, texts):
        drawn = [torch.randn(self.width, generator=torch_rng(self.name, "text", text)) for text in texts]
        return F.normalize(torch.stack(drawn))


class Student(Fake):
    """A backbone with heads, each in its teacher's space: name → (encoder that answers, its teacher)."""

    def __init__(self, heads: dict[str, tuple[Encoder, Encoder]], name: str = "student"):
        super().__init__(name)
        self.heads = heads
        self.adaptor_names = tuple(heads)

    def see(self, pixels):
        return Truth().see(pixels)

    def everything(self, images):
        return {"backbone": self(images)} | {name: head(images) for name, (head, _) in self.heads.items()}

    def adaptor(self, name):
        head, teacher = self.heads[name]
        head.teacher = lambda: teacher
        return head


@dataclass
class World:
    """Runs a task on a model, its cache in `folder`."""

    folder: Path
    train: Split = field(default_factory=lambda: make_split("train", 96))
    val: Split = field(default_factory=make_split)
    said: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.cache = FeatureCache(self.folder, batch=20, say=self.said.append)

    def context(self, encoder: Encoder, task: str, seed: int = 0, **settings) -> Context:
        heads = {name: encoder.adaptor(name) for name in encoder.adaptor_names} if isinstance(encoder, Student) else {}
        module = TASKS[task]
        chosen = module.Settings(task=task, data="world", **settings)
        model = Model(encoder.name, encoder.name, encoder, adaptors=heads)
        splits = {"train": self.train, "val": self.val}
        return Context(model, chosen, seed, splits.__getitem__, self.cache, module.FIT)

    def run(self, encoder: Encoder, task: str, seed: int = 0, **settings):
        return TASKS[task].run(self.context(encoder, task, seed, **settings))


def write_student(folder: Path) -> Path:
    """An export of an untrained student with heads for two random teachers `a` and `b`, as a run would leave it."""
    import json

    from safetensors.torch import save_file

    from teachers.catalogue import build
    from teachers.radio import RadioModel
    from teachers.radio_files import CONFIG, FORMAT, WEIGHTS
    from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
    from teachers.seeding import seeded

    teachers, heads, mlp = {}, {}, MlpSpec(32)
    for name, options in {"a": {"patch": 8, "width": 24, "image_size": 32}, "b": {"patch": 4, "width": 16}}.items():
        options |= {"depth": 1, "image_size": options.get("image_size", 16)}
        teacher = build("random", **options)
        heads[name] = HeadSpec(teacher.dims.spatial, mlp, teacher.dims.summary, mlp if teacher.dims.summary else None)
        teachers[name] = {"encoder": "random", "weights": None, "options": options, "has_text": False}
    spec = RadioSpec(patch=8, width=32, depth=2, num_heads=2, cpe_max=64, registers=2, heads=heads)
    with seeded("a student"):
        model = RadioModel(spec)
    (folder / "export").mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "export" / WEIGHTS)
    config = {"format": FORMAT, "licence": "none", "preferred_size": [32, 32], "spec": spec.as_dict()}
    (folder / "export" / CONFIG).write_text(json.dumps(config | {"teachers": teachers}))
    return folder
