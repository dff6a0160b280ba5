"""Windowed mode: the order of windows, who sees what, and equality with global attention where both mean the same."""

from __future__ import annotations

import pytest
import torch

from teachers.errors import UserError
from teachers.radio import RadioModel
from teachers.radio_spec import RadioSpec
from teachers.radio_windows import from_windows, is_windowed, to_windows
from teachers.seeding import seeded
from tests.teachers.radio_toys import images, model

BARE = RadioSpec(
    patch=4, width=16, depth=4, num_heads=2, cpe_max=32, registers=0, heads={}, token_per_teacher=True, global_blocks=2
)  # fmt: skip


@pytest.mark.parametrize(("grid", "window"), [((4, 6), 2), ((6, 3), 3), ((2, 2), 1), ((4, 4), 4)])
def test_patches_go_into_windows_and_back(grid, window):
    h, w = grid
    patches = torch.arange(2.0 * h * w * 3).view(2, h * w, 3)
    order = to_windows(patches, grid, window)
    assert torch.equal(from_windows(order, grid, window), patches)
    numbers = to_windows(torch.arange(h * w).view(1, -1, 1), grid, window)[0, :, 0].tolist()
    wanted = [
        (top + y) * w + left + x
        for top in range(0, h, window) for left in range(0, w, window)
        for y in range(window) for x in range(window)
    ]  # fmt: skip
    assert numbers == wanted


def test_a_grid_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="4×6 patches does not divide into windows of 4×4"):
        model(spec=BARE)(images(1, 3, 16, 24), window=4)


@pytest.mark.parametrize(
    ("depth", "options", "windowed"),
    [
        (8, {}, "w.w.w.w."),
        (12, {}, "ww.ww.ww.ww."),
        (27, {}, "wwwww.wwwww.wwwww.wwwww.ww."),  # the very last is global
        (13, {"windowed_blocks": 5}, "wwwww.wwwww.."),
        (40, {"global_blocks": 8}, "wwww." * 8),
    ],
)
def test_every_period_ends_with_a_global_block_and_so_does_the_trunk(depth, options, windowed):
    spec = RadioSpec(4, 16, depth, 2, 32, 0, {}, **options)
    got = "".join("w" if is_windowed(i, depth, spec.window_period) else "." for i in range(depth))
    assert got == windowed


def test_a_trunk_too_shallow_for_windows_says_what_to_change():
    with pytest.raises(UserError, match="4 blocks has no windowed ones beside 4 global ones") as caught:
        model(spec=BARE, global_blocks=4)(images(1, 3, 16, 16), window=2)
    assert "student.global_blocks=2" in caught.value.todo


def reference(made: RadioModel, batch: torch.Tensor, window: int) -> torch.Tensor:
    """Windowed mode said plainly: one window after the other, cut out of the map and put back."""
    p, (h, w) = made.first_patch, made.grid(batch)
    x = made.patch_generator(made.input_conditioner(batch))
    for number, block in enumerate(made.blocks):
        if not is_windowed(number, len(made.blocks), made.spec.window_period):
            x = block(x)
            continue
        maps, rows = x[:, p:].unflatten(1, (h, w)), []
        for top in range(0, h, window):
            cut = [maps[:, top : top + window, left : left + window] for left in range(0, w, window)]
            rows.append(torch.cat([block(one.flatten(1, 2)).view_as(one) for one in cut], dim=2))
        x = torch.cat([x[:, :p], torch.cat(rows, dim=1).flatten(1, 2)], dim=1)
    return made.norm(x)


@pytest.mark.parametrize(("size", "window"), [((16, 24), 2), ((24, 12), 3), ((16, 16), 1)])
def test_folded_windows_are_windows_one_by_one_forward_and_backward(size, window):
    batch, gradients, answers = images(2, 3, *size), [], []
    for run in (lambda made: made.tokens(batch, window), lambda made: reference(made, batch, window)):
        made = model(depth=4, global_blocks=2)
        answers.append(run(made))
        answers[-1].square().mean().backward()
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*answers)
    assert gradients[0].keys() == gradients[1].keys() and "patch_generator.tokens" in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


def test_without_summary_tokens_one_window_of_everything_is_global_attention_and_with_them_it_is_not():
    batch = images(2, 3, 16, 16)
    bare = model(spec=BARE)
    assert bare.first_patch == 0
    torch.testing.assert_close(bare.tokens(batch, window=4), bare.tokens(batch))
    crowded = model(depth=4, global_blocks=2)
    difference = crowded.tokens(batch, window=4) - crowded.tokens(batch)
    assert difference[:, crowded.first_patch :].abs().max() > 1e-2


def test_summaries_and_registers_pass_by_windowed_blocks():
    made, batch = model(depth=4, global_blocks=2), images(2, 3, 16, 24)
    p = made.first_patch
    steps = made.intermediates(batch, range(4), window=2)
    assert torch.equal(steps[0][:, :p], made.patch_generator.tokens.expand(2, -1, -1))
    assert torch.equal(steps[2][:, :p], steps[1][:, :p]) and not torch.equal(steps[3][:, :p], steps[2][:, :p])
    torch.testing.assert_close(steps[3], made.tokens(batch, window=2))
    changed = batch.clone()
    changed[:, :, :8, :8] += 0.5  # the first window of 2×2 patches
    moved = (made.intermediates(changed, [0], window=2)[0] - steps[0])[:, p:].abs().amax(2)[0].view(4, 6) > 1e-6
    assert moved[:2, :2].all() and moved.sum() == 4


def test_windowed_training_can_be_checkpointed():
    def run(checkpointing: bool) -> tuple[torch.Tensor, dict]:
        made = model(depth=4, global_blocks=2, drop_path=0.3, activation_checkpointing=checkpointing).train()
        with seeded("forward"):
            loss = made(images(2, 3, 16, 24), window=2)["clip"].features.square().mean()
            loss.backward()
        return loss, {name: p.grad for name, p in made.named_parameters() if p.grad is not None}

    (plain, gradients), (kept, recomputed) = run(False), run(True)
    assert torch.equal(plain, kept) and gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-7)
