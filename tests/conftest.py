"""What tests share: tiny shards of synthetic pictures, and a recipe so small that a run takes about a second."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# Before tests/, whose folders are named like the packages that they test.
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from trial import Trial  # noqa: E402

torch.set_num_threads(1)


def picture(number: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A smooth synthetic picture, H×W×3 uint8, that depends on its number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(2 * np.pi * (rng.uniform(0.3, 2) * x + rng.uniform(0.3, 2) * y + rng.random())) for _ in range(3)]
    return (127.5 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


def encoded(number: int, kind: str = "JPEG") -> bytes:
    """A synthetic picture as a file's bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture(number, height=40 + 4 * (number % 3))).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A folder with three training shards of ten pictures (JPEG and PNG, 40 to 48 pixels) and one of six held out."""
    from webdataset import TarWriter

    folder = tmp_path_factory.mktemp("shards")
    parts = {
        "train-000": range(10),
        "train-001": range(10, 20),
        "train-002": range(20, 30),
        "heldout-000": range(90, 96),
    }
    for name, numbers in parts.items():
        with TarWriter(str(folder / f"{name}.tar")) as tar:
            for n in numbers:
                kind = "png" if n % 5 == 0 else "jpg"
                tar.write({"__key__": f"{n:04d}", kind: encoded(n, {"png": "PNG", "jpg": "JPEG"}[kind])})
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(shards, tmp_path_factory) -> Callable[..., dict]:
    """Makes the tiny recipe as a dict: two random teachers of other widths and patches, a square a rectangular one."""
    cache = tmp_path_factory.mktemp("statistics")

    def make(run: Path | str) -> dict:
        train = str(shards / "train-{000..002}.tar")
        return {
            "task": "distill",
            "run": str(run),
            "teachers": {
                "a": {"encoder": "random", "options": {"patch": 8, "width": 24, "depth": 1, "image_size": 32}},
                "b": {
                    "encoder": "random",
                    "options": {"patch": 4, "width": 16, "depth": 1, "image_size": 16, "seed": 3},
                },
            },
            "streams": {
                "low": {"shards": train, "size": 32, "batch": 4, "shuffle": 8},
                "high": {"shards": train, "size": [[32, 48], [48, 64]], "batch": 2, "shuffle": 8},
            },
            "heldout": {"shards": str(shards / "heldout-000.tar"), "samples": 5, "batch": 4},
            "student": {
                "arch": "vit_nano",
                "width": 32,
                "depth": 2,
                "num_heads": 2,
                "patch": 8,
                "cpe_max": 64,
                "registers": 2,
            },
            "stages": [{"steps": 8}],
            "optim": {"warmup": 2, "lr": 2e-3},
            "statistics": {"batches": 3, "cache": str(cache)},
            "output": {"log": 4, "save": 3, "heldout": 4, "pictures": 0},
            "precision": "fp32",
            "threads": 1,
        }

    return make


@pytest.fixture
def trial(tiny_recipe, tmp_path, monkeypatch) -> Trial:
    """The tiny recipe in this test's folder; curves, which cost more than the training, are not drawn."""
    monkeypatch.setattr("radio_distill.curves.draw", lambda run: None)
    return Trial(tiny_recipe(tmp_path / "run"), tmp_path)


@pytest.fixture(scope="session")
def trained(tiny_recipe, tmp_path_factory) -> Trial:
    """A finished tiny run with everything that a run writes: journal, checkpoints, curves, pictures, export."""
    folder = tmp_path_factory.mktemp("trained")
    made = Trial(tiny_recipe(folder / "run"), folder)
    assert made.train("output.pictures=8") == 0
    return made
