"""Backbone tokens → a teacher's summary or features: RADIO's adaptor heads, MLPs of two versions and with attention.

Parameters have the names of the released checkpoints. Shapes: D the student's width, C the teacher's, N patches, h w
grid, u the head's up-factor.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from teachers.features import Size
from teachers.radio_spec import ATTENTION_HEADS, HeadSpec, MlpSpec

ATTENTION_BLOCKS, ATTENTION_SCALE = 2, 1e-5


class HeadV1(nn.Module):
    """…×D → …×C fp32: Linear, LayerNorm, ReLU, inner layers of the same, Linear (AM-RADIO; its code has ReLU)."""

    def __init__(self, width: int, mlp: MlpSpec, out: int):
        super().__init__()
        hidden = mlp.hidden
        self.fc1 = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()) for _ in range(mlp.blocks)
        )
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.fc1(tokens)).relu()
        for layer in self.inner:
            hidden = layer(hidden)
        return self.fc2(hidden).float()

    @property
    def last(self) -> nn.Linear:
        """The layer into which a linear map of the output can be folded."""
        return self.fc2


class HeadV2(nn.Module):
    """…×D → …×C fp32: Linear, residual blocks, Linear (RADIO's MLP version 2)."""

    def __init__(self, width: int, mlp: MlpSpec, out: int):
        super().__init__()
        hidden = mlp.hidden
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in range(mlp.blocks)
        )
        self.final = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.final(hidden).float()

    @property
    def last(self) -> nn.Linear:
        """The layer into which a linear map of the output can be folded."""
        return self.final[-1]


class AttentionHead(nn.Module):
    """B×N×D patches → B×N×C fp32: two transformer blocks over them, then an MLP of version 2."""

    def __init__(self, width: int, mlp: MlpSpec, out: int):
        super().__init__()
        from timm.models.vision_transformer import Block

        self.blocks = nn.ModuleList(
            Block(width, ATTENTION_HEADS, init_values=ATTENTION_SCALE) for _ in range(ATTENTION_BLOCKS)
        )
        self.mlp = HeadV2(width, MlpSpec(mlp.hidden), out)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.mlp(tokens)

    @property
    def last(self) -> nn.Linear:
        """The layer into which a linear map of the output can be folded."""
        return self.mlp.last


VERSIONS = {"v1": HeadV1, "v2": HeadV2, "attention": AttentionHead}
Head = HeadV1 | HeadV2 | AttentionHead


def build_heads(width: int, spec: HeadSpec) -> nn.ModuleDict:
    """The heads of one teacher: `spatial`, and `summary` where it has one. `spatial` gives u²·C values a patch."""
    mlp = spec.spatial_mlp
    pair = {"spatial": VERSIONS[mlp.version](width, mlp, spec.up**2 * spec.spatial)}
    if spec.summary is not None:
        pair["summary"] = VERSIONS[spec.summary_mlp.version](width, spec.summary_mlp, spec.summary)
    return nn.ModuleDict(pair)


def as_map(tokens: Tensor, grid: Size, up: int = 1) -> Tensor:
    """B×N×(u²·C) tokens, row by row → B×C×uh×uw: a token holds its u×u cells row by row (RADIO's pixel shuffle)."""
    return rearrange(tokens, "b (h w) (v u c) -> b c (h v) (w u)", h=grid[0], v=up, u=up)
