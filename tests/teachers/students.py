"""Small students with every kind of head, and a description of their teachers, to test files and interfaces with."""

from __future__ import annotations

import torch

from teachers.radio import RadioModel
from teachers.radio_encoder import RadioEncoder
from teachers.radio_files import FORMAT
from teachers.radio_spec import HeadSpec, MlpSpec, RadioSpec
from teachers.seeding import seeded, torch_rng

PLAIN = MlpSpec(12)
HEADS = {
    "clip": HeadSpec(10, MlpSpec(12, 2), 6, MlpSpec(8, 1)),
    "siglip": HeadSpec(7, MlpSpec(12, version="attention"), 5, MlpSpec(8, 0, "v1")),
    "dino": HeadSpec(4, PLAIN, 3, MlpSpec(6, 2, "v1"), supervised=False),
    "sam": HeadSpec(8, MlpSpec(12, 1), up=2),
}


def student(seed: int = 0, heads: dict[str, HeadSpec] | None = None, **changes) -> RadioModel:
    """A student 16 wide whose weights are large enough that a mistake shows."""
    sizes = {"patch": 4, "width": 16, "depth": 4, "num_heads": 2, "cpe_max": 32, "registers": 3, "global_blocks": 2}
    with seeded("student", seed):
        made = RadioModel(RadioSpec(**{**sizes, **changes}, heads=HEADS if heads is None else heads))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if not name.endswith((".s", "original0")):
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval().requires_grad_(False)


def encoder(model: RadioModel | None = None, **teachers: dict) -> RadioEncoder:
    """The student as an encoder; `teachers`: entries of its config beside random ones."""
    model = model or student()
    source = {"encoder": "random", "weights": "random", "options": {"patch": 4, "width": 6}, "has_text": False}
    config = {
        "format": FORMAT, "licence": "none", "preferred_size": [16, 24], "spec": model.spec.as_dict(),
        "teachers": {name: {**source, **teachers.get(name, {})} for name in model.heads},
    }  # fmt: skip
    return RadioEncoder(model, config, "student")


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise in [0, 1]."""
    return torch.rand(*shape, generator=torch_rng("images", seed))


def assert_same_answers(got: RadioEncoder, wanted: RadioEncoder, tolerance: float = 1e-5) -> None:
    """Both say the same of two sizes, in every head."""
    for batch in (images(2, 3, 16, 24), images(1, 3, 32, 8, seed=1)):
        mine, theirs = got.everything(batch), wanted.everything(batch)
        assert list(mine) == list(theirs)
        for name in theirs:
            for part, other in zip(mine[name], theirs[name]):
                assert (part is None) == (other is None), name
                if other is not None:
                    torch.testing.assert_close(part, other, rtol=tolerance, atol=tolerance)
