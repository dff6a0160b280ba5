"""What several tests of teachers share: folders of tiny towers, and real photographs."""

from pathlib import Path

import pytest
from tiny_towers import NATIVE, TIMM, write_tower


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> dict[str, Path]:
    """Folders of a native tower and of one with a timm trunk, and of the same with other weights."""
    root = tmp_path_factory.mktemp("towers")
    return {
        f"{kind}{seed}": write_tower(root / f"{kind}{seed}", cfg, seed, licence="Apache-2.0")
        for kind, cfg in (("native", NATIVE), ("timm", TIMM))
        for seed in (0, 1)
    }


@pytest.fixture(scope="session")
def imagenet_photos() -> dict:
    """A 64-px photograph of each of 21 ImageNet classes, by WordNet id, as 1×3×64×64 in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image

    root = Path(__file__).parents[3] / "shared/data/tiny_imagenet_21/val"
    if not root.is_dir():
        pytest.skip(f"needs real photographs in {root}")
    photos = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(folder.rglob("*.JPEG"))[:1]
        arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        photos[folder.name] = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return photos
