"""Measures a forward and backward: milliseconds, bytes held at most, share of what this machine can do.

Shared by the benchmarks beside it. The ceiling is measured in the same run: a large product of matrices and a copy of a
tensor larger than any cache.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor


@dataclass
class Variant:
    """A formulation: inputs → output, and how many FLOPs its forward and backward take together."""

    name: str
    run: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    flops: int
    once: bool = False  # so slow that one repetition must do


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median over repeats, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def ceiling(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a matrix product, byte/s of a copy (read + written), on as many threads as torch uses."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    product = seconds(lambda: torch.mm(a, b), device, 5)
    copy = seconds(lambda: target.copy_(source), device, 5)
    return 2 * n**3 / product, 2 * source.numel() * source.element_size() / copy


def peak_bytes(run: Callable[[], object], resident: int, device: torch.device) -> int:
    """The most bytes of tensors held at once while `run` runs, `resident` bytes that stood before included."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before + resident
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells of its starts and stops
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most + resident


def both_ways(variant: Variant, upstream: Tensor) -> None:
    """Forward and backward; the gradients are dropped."""
    torch.autograd.grad(variant.run(*variant.inputs), variant.inputs, upstream)


def measure(
    variant: Variant, upstream: Tensor, least: int, roof: tuple[float, float], repeats: int, shape: Sequence[int]
) -> dict:
    """One row; `least`: bytes that no formulation can help reading and writing; `shape`: channels, height, width."""
    device = upstream.device
    resident = sum(x.untyped_storage().nbytes() for x in (*variant.inputs, upstream))
    peak = peak_bytes(lambda: both_ways(variant, upstream), resident, device)
    took = seconds(lambda: both_ways(variant, upstream), device, 1 if variant.once else repeats)
    share = max(variant.flops / roof[0], least / roof[1]) / took
    channels, height, width = shape
    return {
        "variant": variant.name, "channels": channels, "height": height, "width": width, "ms": round(1000 * took, 3),
        "peak_bytes": peak, "flops": variant.flops, "bytes": least, "device": device.type,
        "dtype": str(upstream.dtype).removeprefix("torch."), "share_of_ceiling": round(share, 3),
        "peak_maps": round(peak / (upstream.numel() * upstream.element_size()), 2),
    }  # fmt: skip


def report(rows: list[dict], roof: tuple[float, float], as_json: bool, baseline: str = "unfold") -> None:
    """Print rows of one size with how many times faster than the baseline each is."""
    slow = next((row["ms"] for row in rows if row["variant"] == baseline), None)
    first = rows[0]
    if not as_json:
        print(
            f"\n{first['channels']} channels, {first['height']}×{first['width']}, {first['dtype']}, {first['device']}; "
            f"a product runs at {roof[0] / 1e9:.0f} GFLOP/s, a copy at {roof[1] / 1e9:.1f} GB/s; "
            f"forward + backward moves {first['bytes'] / 1e6:.1f} MB at least\n{'variant':24s} {'ms':>10s} "
            f"{'× faster':>9s} {'GFLOP':>7s} {'of ceiling':>10s} {'peak MB':>8s} {'in maps':>8s}"
        )
    for row in rows:
        row["times_faster"] = round(slow / row["ms"], 1) if slow else None
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['variant']:24s} {row['ms']:10.1f} {row['times_faster'] or '-':>9} {row['flops'] / 1e9:7.2f} "
                f"{row['share_of_ceiling']:10.1%} {row['peak_bytes'] / 1e6:8.1f} {row['peak_maps']:8.2f}",
                flush=True,
            )
