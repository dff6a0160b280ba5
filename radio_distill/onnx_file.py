"""A student → an ONNX graph of its backbone and heads at one image size, any batch; checked with onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.features import Size
from teachers.radio_encoder import RadioEncoder
from teachers.seeding import torch_rng

TOLERANCE = 1e-4  # of what onnxruntime says, beside the largest value of an output (or 1)


class Graph(nn.Module):
    """A student as a function of images alone: the backbone's summary and features, then each head's."""

    def __init__(self, encoder: RadioEncoder, heads: Sequence[str]):
        super().__init__()
        self.model, self.heads = encoder.model, tuple(heads)
        spec = self.model.spec
        with_summary = [name for name in self.heads if spec.heads[name].summary is not None]
        self.parts = [("backbone", "summary")] if self.model.summary_slots else []
        self.parts += [("backbone", "features")]
        for name in self.heads:
            self.parts += [(name, "summary")] if name in with_summary else []
            self.parts += [(name, "features")]

    @property
    def output_names(self) -> list[str]:
        """`summary`, `features`, and `NAME_summary`, `NAME_features` of every head."""
        return [part if name == "backbone" else f"{name}_{part}" for name, part in self.parts]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """B×3×H×W in [0, 1] → summaries B×C and feature maps B×C×h×w."""
        out = self.model(images, heads=self.heads)
        return tuple(getattr(out[name], part) for name, part in self.parts)


def write_onnx(
    encoder: RadioEncoder, file: Path, size: Sequence[int] | None = None, adaptors: Sequence[str] | None = None
) -> str:
    """Write the graph to `file`, whole or not at all; returns what there is to tell of it.

    Args:
        size: one side, or height and width, in pixels; the student's preferred size without.
        adaptors: the heads to have in it; all without.
    """
    _need("onnx", "onnxscript")
    size = encoder.native_size if size is None else (size[0], size[-1])
    encoder.check_size(size)
    heads = encoder.adaptor_names if adaptors is None else [encoder.adaptor(name).head for name in adaptors]
    graph = Graph(encoder, heads).eval()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".onnx-") as folder:
        _translate(graph, size, Path(folder) / file.name)
        told = _check(graph, size, Path(folder) / file.name)
        # Weights of more than 2 GB lie in a file beside the graph, which must be there first.
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == file.name):
            os.replace(part, file.parent / part.name)
    return f"{size[0]}×{size[1]} pixels, outputs {', '.join(graph.output_names)}; {told}"


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {' and '.join(missing)}, which is not installed" if len(missing) == 1 else
            f"--format onnx needs {' and '.join(missing)}, which are not installed",
            todo="pip install 'radio-distill[onnx]'",
        )  # fmt: skip


def _translate(graph: Graph, size: Size, file: Path) -> None:
    images = torch.rand(2, 3, *size)  # a batch of one would be taken for a fixed one
    spec = graph.model.spec
    about = {"patch": spec.patch, "width": spec.width, "size": list(size), "heads": list(graph.heads)}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=graph.output_names,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    program.model.metadata_props["radio-distill"] = json.dumps(about)
    program.save(str(file))


def _check(graph: Graph, size: Size, file: Path) -> str:
    """onnxruntime against torch on batches of other sizes than the one that was traced."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not checked, as onnxruntime is not installed"
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in (1, 3):
        images = torch.rand(batch, 3, *size, generator=torch_rng("onnx", batch))
        with torch.no_grad():
            wanted = graph(images)
        for name, said, meant in zip(graph.output_names, session.run(None, {"images": images.numpy()}), wanted):
            assert said.shape == tuple(meant.shape), f"{name}: {said.shape} instead of {tuple(meant.shape)}"
            difference = (torch.from_numpy(said) - meant).abs().max() / meant.abs().max().clamp(min=1)
            largest = max(largest, difference.item())
    if not largest <= TOLERANCE:
        raise RuntimeError(f"onnxruntime answers otherwise than torch, by {largest:.1e} of an output's largest value")
    return f"onnxruntime agrees to {largest:.0e}"
