"""Measures joint bilateral upsampling by 2, forward + backward: our forms of its filter, beside the unfold form.

    python benchmarks/jbu.py                             # a table for each size
    python benchmarks/jbu.py --json                      # one object a line
    python benchmarks/jbu.py --sizes 768x128x128         # channels × height × width of the output
    python benchmarks/jbu.py --filter-gradient 300       # what the 42 taps are worth that a public extension forgets

`default` is what `auto` picks; `level` and `level_unfold` are a whole level, which also makes the kernel from guidance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from measure import Variant, ceiling, measure, report
from torch import Tensor

import featsharp.jbu
from featsharp.adaptive import Tiling, adaptive_upsample
from featsharp.config import JbuConfig
from featsharp.jbu import JbuLevel, JbuStack
from teachers.seeding import torch_rng

FACTOR, TAPS = 2, 49
# Taps whose gradient the public CUDA extension computes: it multiplies a block's index by itself, not by the size.
LEARNING = [0, 1, 4, 9, 16, 25, 36]


def unfold_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """The usual formulation: each cell's 49 neighbours side by side in memory, then one contraction."""
    size = kernel.shape[-2:]
    large = F.interpolate(source, size=size, mode="bilinear", align_corners=False)
    around = F.unfold(F.pad(large, (3, 3, 3, 3), mode="reflect"), 7).view(*source.shape[:2], TAPS, *size)
    return torch.einsum("bctyx,btyx->bcyx", around, kernel)


def unfold_likeness(q: Tensor, radius: int) -> Tensor:
    """⟨q(p+o), q(p)⟩ the same way."""
    around = F.unfold(F.pad(q, (radius,) * 4, mode="reflect"), 2 * radius + 1).view(*q.shape[:2], TAPS, *q.shape[2:])
    return torch.einsum("bctyx,bcyx->btyx", around, q)


class _PublicGradient(torch.autograd.Function):
    """The kernel as it is; on the way back only the taps that the public extension remembers."""

    @staticmethod
    def forward(ctx, kernel: Tensor) -> Tensor:
        return kernel.view_as(kernel)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Tensor:
        known = torch.zeros_like(upstream)
        known[:, LEARNING] = upstream[:, LEARNING]
        return known


def seven_taps(source: Tensor, kernel: Tensor, factor: int, implementation: str = "auto") -> Tensor:
    """The right output with the public extension's filter gradient."""
    return adaptive_upsample(source, _PublicGradient.apply(kernel), factor, implementation)


@contextmanager
def public_filter_gradient() -> Iterator[None]:
    """Within, every JBU level learns from 7 taps of 49, as published results did."""
    featsharp.jbu.adaptive_upsample = seven_taps
    try:
        yield
    finally:
        featsharp.jbu.adaptive_upsample = adaptive_upsample


@contextmanager
def unfolded() -> Iterator[None]:
    """Within, every JBU level is the unfold formulation."""
    stands = featsharp.jbu.adaptive_upsample, featsharp.jbu.tile_likeness
    featsharp.jbu.adaptive_upsample = lambda source, kernel, factor, implementation: unfold_upsample(
        source, kernel.to(source.dtype), factor
    )
    featsharp.jbu.tile_likeness = unfold_likeness
    try:
        yield
    finally:
        featsharp.jbu.adaptive_upsample, featsharp.jbu.tile_likeness = stands


def within(context: Callable, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def inside(*inputs: Tensor) -> Tensor:
        with context():
            return run(*inputs)

    return inside


def variants(channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype) -> list[Variant]:
    """Every form at one size, all on the same inputs."""
    rng = torch_rng("benchmark", "jbu")
    small = height // FACTOR, width // FACTOR
    source = torch.randn(1, channels, *small, generator=rng).to(device, dtype).requires_grad_()
    kernel = torch.randn(1, TAPS, height, width, generator=rng).softmax(1).to(device).requires_grad_()
    guidance = torch.rand(1, 3, height, width, generator=rng).to(device, dtype).requires_grad_()
    level = JbuLevel(FACTOR, JbuConfig()).to(device, dtype)
    # Forward, gradient by source, gradient by kernel: a multiplication and an addition each.
    plain = 3 * 2 * TAPS * channels * height * width
    tiling = Tiling.of(FACTOR, 3)
    tiles = -(-height // tiling.side) * -(-width // tiling.side)
    composed = 3 * 2 * tiles * tiling.side**2 * tiling.reach * (tiling.reach * (channels + 7) + TAPS)
    likeness = 3 * 2 * TAPS * JbuConfig().width * height * width
    inputs = source, kernel
    forms = [
        Variant("default", partial(adaptive_upsample, factor=FACTOR), inputs, composed),
        Variant("composed", partial(adaptive_upsample, factor=FACTOR, implementation="composed"), inputs, composed),
        Variant("seven_taps", partial(seven_taps, factor=FACTOR), inputs, composed),
        Variant("shift_add", partial(adaptive_upsample, factor=FACTOR, implementation="shift_add"), inputs, plain),
        Variant("shift", partial(adaptive_upsample, factor=FACTOR, implementation="shift"), inputs, plain),
        Variant("unfold", lambda s, k: unfold_upsample(s, k.to(s.dtype), FACTOR), inputs, plain, once=True),
        Variant("level", level, (source, guidance), composed + likeness),
        Variant("level_unfold", within(unfolded, level), (source, guidance), plain + likeness, once=True),
    ]
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return forms
        fused = partial(adaptive_upsample, factor=FACTOR, implementation="triton")
        forms.insert(1, Variant("triton", fused, inputs, composed))
    return forms


def least_bytes(channels: int, height: int, width: int, element: int) -> int:
    """Forward: read source and kernel, write the output. Backward: read them and its gradient, write both of theirs."""
    cells = height * width
    return 2 * channels * cells * element + 3 * channels * cells // FACTOR**2 * element + 3 * TAPS * cells * 4


def filter_gradient(steps: int) -> None:
    """Train a ×4 stack to restore photographs from their 4-fold means, with all taps' gradients and with seven."""
    from contextlib import nullcontext

    from skimage import data

    pictures = torch.stack([torch.from_numpy(p()[:400, :400]).permute(2, 0, 1) for p in (data.astronaut, data.coffee)])
    pictures = F.adaptive_avg_pool2d(pictures / 255.0, 64)
    train, held = pictures[:1], pictures[1:]
    for name, context in {"49 taps": nullcontext, "7 taps": public_filter_gradient}.items():
        scores = []
        for seed in range(3):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                stack = JbuStack(4, JbuConfig())
            optimizer = torch.optim.Adam(stack.parameters(), 5e-3)
            with context():
                for _ in range(steps):
                    loss = (stack(F.avg_pool2d(train, 4), train) - train).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                scores.append((stack(F.avg_pool2d(held, 4), held) - held).square().mean().sqrt().item())
        listed = ", ".join(f"{score:.4f}" for score in scores)
        print(f"{name:8s} held-out error after {steps} steps (RMS, three seeds): {listed}", flush=True)


def size(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("x"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(384, 64, 64), (768, 128, 128)], metavar="CxHxW")
    parser.add_argument("--only", nargs="+", help="these variants alone")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--filter-gradient", type=int, metavar="STEPS", help="train with 49 taps and with 7, no timing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.filter_gradient:
        return filter_gradient(options.filter_gradient)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    roof = ceiling(device, dtype)
    for shape in options.sizes:
        upstream = torch.randn(1, *shape, generator=torch_rng("benchmark", "upstream")).to(device, dtype)
        least = least_bytes(*shape, upstream.element_size())
        rows = [
            measure(variant, upstream, least, roof, options.repeats, shape)
            for variant in variants(*shape, device, dtype)
            if not options.only or variant.name in options.only
        ]
        report(rows, roof, options.json)


if __name__ == "__main__":
    main()
