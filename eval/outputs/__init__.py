"""Quantities of every pixel that one head predicts together, each with its target, loss, score and picture."""

from eval.outputs.classes import Parts, Semseg
from eval.outputs.found import Boundary, Saliency
from eval.outputs.output import Output
from eval.outputs.values import Depth, Normals

OUTPUTS: dict[str, type[Output]] = {
    "semseg": Semseg, "parts": Parts, "saliency": Saliency, "normals": Normals, "boundary": Boundary, "depth": Depth,
}  # fmt: skip
