"""Turns a setting (`tiny`, or a folder) into a language model that reads visual tokens and words and says what follows.

Shapes: B sequences of T tokens, E the width of an embedding, K places that are asked for, V words or word pieces.

Several texts share one sequence: what a token sees is given as a mask and where it stands as a position, so all
questions about a picture read its tokens at the cost of reading them once, and know nothing of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.datasets.split import weights_identity
from teachers.errors import UserError
from teachers.words import END, START, UNKNOWN, WordTokenizer

TINY = "tiny"
TEXT = 64  # positions of words that the tiny model tells apart
HEAD = 16  # width of an attention head of the tiny model
SHARPNESS = 10.0  # of its attention at the beginning: a question finds its thing among all tokens, and soon


class LanguageModel(nn.Module):
    """What a question-answering head needs of a language model: ids, embeddings, logits, and texts again."""

    width: int  # E
    scale: float  # standard deviation of its tokens' embeddings, which visual tokens should have too
    start: list[int]  # ids that every sequence begins with
    end: int  # id that ends an answer
    both_ways: bool  # whether visual tokens see those behind them too

    def ids(self, text: str) -> list[int]:
        """A text's ids, none added at either end."""
        raise NotImplementedError

    def text(self, ids: Sequence[int]) -> str:
        """Ids → text."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """Ids ... → embeddings ...×E."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor, sees: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        """What follows the tokens that `at` names.

        Args:
            embeddings: B×T×E.
            sees: B×T×T bool, row by row what a token reads (itself always).
            positions: B×T, of each token in its own text.
            at: B×K, indices into T.

        Returns:
            Logits B×K×V, fp32.
        """
        raise NotImplementedError

    def pair(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """The ids of a prompt (at least one) and of the answer behind it, whose pieces may depend on the space."""
        head, whole = self.ids(prompt), self.ids(f"{prompt} {answer}")
        same = whole[: len(head)] == head
        return head or [self.end], whole[len(head) :] if same else self.ids(answer)


class TinyLM(LanguageModel):
    """A causal transformer over a closed list of words, to be trained together with what feeds it.

    Words and what is said share one table, and attention compares directions (queries and keys are normalised): with
    a few thousand questions to learn from, both decide whether it learns to look things up at all.

    Args:
        words: every word that it knows; any other becomes one token, `<unk>`.
        visual: tokens that stand before a text, at most.
        width: E, a multiple of 16.
    """

    both_ways, scale = True, 1.0  # nothing was learnt one way before, and a thing is more than its first cell

    def __init__(self, words: Sequence[str], visual: int, width: int = 64, layers: int = 2):
        super().__init__()
        context = visual + TEXT
        self.words = WordTokenizer(words, context)
        self.width, self.start, self.end = width, [self.words.ids[START]], self.words.ids[END]
        self.table, self.places = nn.Embedding(self.words.vocab_size, width), nn.Embedding(context, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.bias = nn.LayerNorm(width), nn.Parameter(torch.zeros(self.words.vocab_size))

    def ids(self, text: str) -> list[int]:
        unknown = self.words.ids[UNKNOWN]
        return [self.words.ids.get(word, unknown) for word in self.words.split(text)]

    def text(self, ids: Sequence[int]) -> str:
        return self.words.decode(ids)

    def embed(self, ids: Tensor) -> Tensor:
        return self.table(ids) * math.sqrt(self.width)

    def forward(self, embeddings: Tensor, sees: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        x = embeddings + self.places(positions.clamp(max=self.places.num_embeddings - 1)) * math.sqrt(self.width)
        *first, last = self.blocks
        for block in first:
            x = block(x, sees)
        return F.linear(self.norm(last(x, sees, at)), self.table.weight, self.bias).float()


class Block(nn.Module):
    """Pre-norm attention and MLP, B×T×E → B×T×E, or B×K×E of the tokens `at`."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.sharpness = nn.Parameter(torch.full((self.heads, 1, 1), math.log(SHARPNESS)))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, sees: Tensor, at: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        key, value = self._heads(self.key(y)), self._heads(self.value(y))
        if at is not None:
            row = torch.arange(len(x), device=x.device)[:, None]
            x, y, sees = x[row, at], y[row, at], sees[row, at]
        query = F.normalize(self._heads(self.query(y)), dim=-1) * self.sharpness.exp()
        read = F.scaled_dot_product_attention(query, F.normalize(key, dim=-1), value, sees[:, None], scale=1.0)
        x = x + self.mix(read.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, HEAD)).transpose(1, 2)


class PretrainedLM(LanguageModel):
    """A causal language model in a folder as Hugging Face's transformers save it.

    Args:
        learns: whether its weights learn too; otherwise they are frozen, and its dropout is off.
    """

    both_ways = False  # as it was trained

    def __init__(self, folder: str | Path, learns: bool = False, device: torch.device | str = "cpu"):
        super().__init__()
        self.model, self.tokenizer = _load(Path(folder).expanduser(), torch.device(device))
        self.model.requires_grad_(learns)
        self.learns, table = learns, self.model.get_input_embeddings()
        self.width, self.scale = table.embedding_dim, float(table.weight.detach().float().std())
        begin, self.end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if self.end is None:
            raise UserError(f"the tokenizer in {folder} has no end-of-text token", expected="an eos_token")
        self.start = [] if begin is None else [begin]
        self.train(False)
        self._check_mask(folder)

    def train(self, mode: bool = True) -> PretrainedLM:
        return super().train(mode and self.learns)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids).float()

    def forward(self, embeddings: Tensor, sees: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        dtype, most = self.model.dtype, getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and int(positions.max()) >= most:
            raise UserError(
                f"the language model has {most} positions, and a question behind its picture needs more",
                todo="set fewer tokens (the side of the grid of visual tokens)",
            )
        hidden = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        hidden = hidden.masked_fill(~sees, torch.finfo(dtype).min)[:, None]
        logits = self.model(
            inputs_embeds=embeddings.to(dtype), attention_mask=hidden, position_ids=positions, use_cache=False
        ).logits
        return logits[torch.arange(len(at), device=at.device)[:, None], at].float()

    @torch.no_grad()
    def _check_mask(self, folder: str | Path) -> None:
        """A model that reads past its mask would copy one question's answer into another's: refuse it."""
        table = self.model.get_input_embeddings()
        tokens = torch.tensor([[1, 2, 3], [1, 4, 3]], device=table.weight.device) % table.num_embeddings
        sees = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=tokens.device).expand(2, 3, 3)
        positions = torch.tensor([[0, 1, 1]] * 2, device=tokens.device)
        said = self(self.embed(tokens), sees, positions, torch.full_like(tokens[:, :1], 2))
        if not torch.allclose(said[0], said[1], rtol=0, atol=1e-4 * float(said.abs().max())):
            raise UserError(
                f"the language model in {folder} does not heed a mask of its own for every token",
                expected="an architecture that takes 4-dimensional masks, such as Llama, Qwen, OPT or GPT-2",
            )


def open_language_model(
    lm: str,
    texts: Sequence[str],
    visual: int,
    *,
    width: int = 64,
    layers: int = 2,
    learns: bool = False,
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """The language model that the setting `lm` names.

    Args:
        lm: `tiny`, or a folder.
        texts: whose words a tiny one knows.
        visual: tokens that a tiny one will be shown before a text, at most.
        width, layers: of a tiny one.
        learns: whether one from a folder is trained too.
    """
    if lm != TINY:
        return PretrainedLM(lm, learns, device)
    words = sorted({word for text in texts for word in WordTokenizer.split(text)})
    return TinyLM(words, visual, width, layers)


@dataclass(frozen=True)
class Folder:
    """A language model on disk, as part of what a figure depends on."""

    identity: str


def folder_of(lm: str) -> Folder | None:
    """What the setting `lm` depends on; None: on nothing but itself."""
    if lm == TINY:
        return None
    return Folder(weights_identity(_found(Path(lm).expanduser())))


def _found(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    raise UserError(
        f"no language model at {folder} (there is no config.json)",
        expected="lm: tiny, or a folder as save_pretrained of Hugging Face's transformers leaves it",
        todo="download one there, such as: hf download Qwen/Qwen2.5-0.5B --local-dir FOLDER",
    )


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """(model, tokenizer), read from disk only; no code that lies with them is run."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        todo = "pip install 'radio-distill[language]', or set lm: tiny"
        raise UserError(f"lm: {folder} needs the package transformers", todo=todo) from None
    _found(folder)
    kept = {"local_files_only": True, "trust_remote_code": False}
    dtype = torch.float32 if device.type == "cpu" else "auto"
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **kept)
        return model.to(device), AutoTokenizer.from_pretrained(folder, **kept)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"the language model in {folder} cannot be loaded: {str(error).splitlines()[0]}",
            expected="a causal language model with safetensors weights, and its tokenizer",
        ) from None
