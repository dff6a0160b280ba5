"""The shipped towers are real teachers, and the command that makes them runs from scenes to scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import teachers
from eval.tabletop.__main__ import main
from eval.tabletop.captions import class_prompts, vocabulary
from eval.tabletop.render import render
from eval.tabletop.towers import CONFIGS, embed_images, embed_texts, load, recall_at_1, zero_shot
from teachers import catalogue

WEIGHTS = Path(teachers.__file__).parent / "weights"


@pytest.fixture(scope="module")
def scenes():
    return [render(11, "test", index) for index in range(100)]


@pytest.fixture(scope="module", params=CONFIGS)
def tower(request):
    return request.param, *load(WEIGHTS / request.param)


def test_zero_shot_and_retrieval_are_far_above_chance_on_unseen_scenes(tower, scenes):
    _, model, config = tower
    images, labels = np.stack([scene.image for scene in scenes]), np.array([scene.label for scene in scenes])
    assert zero_shot(model, config, images, labels) >= 0.75  # of 100; chance: 0.1
    to_text, to_image = recall_at_1(model, config, images, [scene.captions[0] for scene in scenes])
    assert min(to_text, to_image) >= 0.2  # chance: 0.01


def test_the_catalogues_encoder_embeds_as_the_tower_itself_does(tower, scenes):
    name, model, config = tower
    images = np.stack([scene.image for scene in scenes[:8]])
    encoder = catalogue.build(name)
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    pictures = F.interpolate(pictures, size=encoder.native_size, mode="bicubic", antialias=True).clamp(0, 1)
    summary = F.normalize(encoder(pictures).summary, dim=-1)
    torch.testing.assert_close(summary, embed_images(model, config, images), atol=1e-4, rtol=1e-4)
    prompts = [prompt for prompts in class_prompts().values() for prompt in prompts]
    torch.testing.assert_close(encoder.encode_text(prompts), embed_texts(model, config, prompts), atol=1e-4, rtol=1e-4)


def test_the_shipped_scores_are_those_of_real_teachers():
    for name in CONFIGS:
        config = json.loads((WEIGHTS / name / "open_clip_config.json").read_text())
        scores = config["scores"]
        assert scores["zero_shot_scenes"] >= 1000 and scores["zero_shot_kind_accuracy"] >= 0.8
        assert scores["retrieval_captions"] == 200 and scores["image_to_text_recall_at_1"] >= 20 / 200
        assert config["words"] == vocabulary() and config["licence"] == "Apache-2.0"
        assert config["model_cfg"] == json.loads(json.dumps(CONFIGS[name]["model_cfg"]))


def test_the_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("tabletop_*/*")) < 8e6


@pytest.mark.parametrize("only", ["clip", "siglip"])
def test_the_command_trains_saves_and_measures_a_tower(only, tmp_path, capsys):
    arguments = ["--scenes", "24", "--steps", "2", "--batch", "16", "--held-out", "12", "--workers", "0"]
    assert main(["teachers", "--out", str(tmp_path), "--only", only, *arguments]) == 0
    _, config = load(tmp_path / f"tabletop_{only}")
    assert 0 <= config["scores"]["zero_shot_kind_accuracy"] <= 1
    assert config["scores"]["command"] in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / f"tabletop_{only}").iterdir()) == [
        "model.safetensors",
        "open_clip_config.json",
    ]
