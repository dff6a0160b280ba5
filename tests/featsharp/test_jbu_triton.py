"""The adaptive filter's CUDA kernels, without a GPU: right in triton's interpreter, and they compile for one."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featsharp.adaptive import Tiling, shift_upsample, tile_weights
from tests.featsharp.test_adaptive import both_ways, problem

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
ROOT = Path(__file__).parents[2]
SHAPES = [(3, 4, 1), (6, 9, 2), (1, 5, 2), (2, 4, 3), (2, 3, 4), (3, 1, 5), (1, 2, 6), (1, 2, 7), (1, 2, 14)]


def check(dtype: torch.dtype, tolerance: float, shapes: list[tuple[int, int, int]]) -> None:
    """Compare forward and backward with the definition; where TRITON_INTERPRET=1, this runs on the CPU."""
    from featsharp.jbu_triton import tile_product

    def fused(source, kernel, factor):
        weights, tiling = tile_weights(kernel, source.shape[-2:], factor)
        return tile_product(source, weights, tiling, tuple(kernel.shape[-2:]))

    for h, w, factor in shapes:
        source, kernel, upstream = problem(h, w, factor, channels=5)
        kernel = kernel.softmax(1)
        out = both_ways(fused, source.to(dtype), kernel.float(), upstream, factor)
        for mine, its in zip(out, both_ways(shift_upsample, source, kernel, upstream, factor)):
            error = (mine.double() - its).norm() / its.norm()
            assert error < tolerance, f"{h}×{w} factor {factor}: {error:.1e}"
    print("equal")


def test_in_the_interpreter_the_kernels_equal_the_definition():
    # In a process of its own: triton must know before it is imported. The interpreter cannot multiply bf16.
    code = """
from tests.featsharp.test_jbu_triton import SHAPES, check, torch
check(torch.float32, 1e-6, SHAPES)
check(torch.float16, 2e-3, SHAPES[:3])
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "equal\nequal\n", run.stderr


@pytest.mark.parametrize("name", ["_output", "_source_gradient", "_weight_gradient"])
def test_the_kernels_compile_to_tensor_core_code_without_atomics(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget

    from featsharp import jbu_triton

    kernel, tiling = getattr(jbu_triton, name), Tiling.of(2, 3)
    known = {**jbu_triton.geometry(tiling), **jbu_triton.block_of(tiling)}
    known = {key: value for key, value in known.items() if key in kernel.arg_names}
    pointers = dict.fromkeys(("source", "upstream", "out", "of_source"), "*bf16")
    pointers |= dict.fromkeys(("weights", "of_weights"), "*fp32")
    signature = {key: "constexpr" if key in known else pointers.get(key, "i32") for key in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=known)
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    assert "mma.sync" in ptx
    assert not re.search(r"\b(atom|red)\.", ptx)
