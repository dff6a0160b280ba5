"""Language models: texts that share a sequence know nothing of each other, and folders are read as transformers do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import eval.language as language
from eval.language import TINY, PretrainedLM, TinyLM, folder_of, open_language_model
from eval.reader import Reader, decode, lay_out
from teachers.errors import UserError
from teachers.seeding import seeded, torch_rng

WORDS = ["what", "colour", "is", "the", "ball", "cube", "red", "blue", "yes", "no", "question", "answer", "a", "there"]


def write_folder(folder: Path, family: str = "gpt2", eos: bool = True, positions: int = 64) -> Path:
    """A random causal language model and a tokenizer of whole words, as transformers save them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *WORDS]
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    with seeded("a language model", family):
        if family == "gpt2":
            made = GPT2LMHeadModel(
                GPT2Config(vocab_size=len(names), n_positions=positions, n_embd=32, n_layer=2, n_head=2)
            )
        else:
            made = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(names), max_position_embeddings=positions, hidden_size=32, intermediate_size=48,
                    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                )
            )  # fmt: skip
        for parameter in made.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)  # far from uniform, so that differences would show
    made.save_pretrained(folder)
    return folder


def open_one(kind: str, folder: Path):
    if kind == TINY:
        with seeded("tiny"):
            return open_language_model(TINY, [" ".join(WORDS)], 8, width=32)
    return PretrainedLM(write_folder(folder / kind, kind))


@pytest.fixture(params=[TINY, "gpt2", "llama"])
def lm(request, tmp_path):
    return open_one(request.param, tmp_path).eval()


ASKED = [
    [("what colour is the ball", "red"), ("is the cube red", "no")],
    [("is there a ball there", "yes"), ("what", "blue ball"), ("is the cube red", "yes")],
]


def pairs(lm) -> list:
    return [[lm.pair(*pair) for pair in own] for own in ASKED]


def pictures(lm, count: int = 2, tokens: int = 5) -> torch.Tensor:
    return torch.randn(count, tokens, lm.width, generator=torch_rng("tokens"))


# --- one sequence, several texts -------------------------------------------------------------------------------------


@torch.no_grad()
def test_questions_in_one_sequence_are_answered_as_if_each_stood_alone(lm):
    tokens, sheet = pictures(lm), lay_out(pairs(lm), 5, lm)
    together = sheet.say(lm, tokens, sheet.at)
    for row, own in enumerate(pairs(lm)):
        k = 0
        for pair in own:
            alone = lay_out([[pair]], 5, lm)
            wanted = alone.say(lm, tokens[row : row + 1], alone.at)[0]
            assert (sheet.targets[row, k : k + len(wanted)] == alone.targets[0]).all()
            torch.testing.assert_close(together[row, k : k + len(wanted)], wanted, atol=2e-4, rtol=1e-4)
            k += len(wanted)
        assert (sheet.targets[row, k:] == -100).all()


@torch.no_grad()
def test_a_sheet_holds_texts_and_their_answers_one_further(lm):
    sheet = lay_out(pairs(lm), 5, lm)
    head, tail = pairs(lm)[1][1]
    whole = sheet.text[1].tolist()
    begin = len(sum(pairs(lm)[1][0], []))
    assert whole[begin : begin + len(head) + len(tail)] == head + tail
    known = sheet.targets[1] != -100
    assert sheet.targets[1][known].tolist() == [
        token for _, answer in pairs(lm)[1] for token in (*answer, lm.end)
    ]  # fmt: skip
    assert (sheet.sees.diagonal(dim1=1, dim2=2)).all()
    text = sheet.sees[:, 5:, 5:]
    assert not text.triu(1).any()  # nothing is read before it is said


@torch.no_grad()
def test_an_answer_depends_on_the_picture(lm):
    tokens, sheet = pictures(lm), lay_out(pairs(lm), 5, lm)
    other = tokens.clone()
    other[0, 0] = pictures(lm, 3)[2, 0]
    before, after = sheet.say(lm, tokens, sheet.at), sheet.say(lm, other, sheet.at)
    assert (before[0] - after[0]).abs().max() > 1e-3 and torch.equal(before[1], after[1])


def test_only_the_tiny_model_reads_visual_tokens_both_ways(lm):
    sheet = lay_out(pairs(lm), 5, lm)
    assert bool(sheet.sees[0, 0, 4]) == isinstance(lm, TinyLM)


# --- tiny ------------------------------------------------------------------------------------------------------------


def test_tiny_knows_the_words_of_its_texts_and_one_more():
    lm = open_language_model(TINY, ["What colour?", "red"], 4)
    assert lm.words.words == ["colour", "red", "what"]
    assert lm.text(lm.ids("What colour: red")) == "what colour red"
    assert lm.ids("green zebra") == [lm.ids("green")[0]] * 2 and lm.text(lm.ids("green")) == "<unk>"
    assert lm.pair("?", "red") == ([lm.end], lm.ids("red"))  # a question without words still has a place to answer from


@torch.no_grad()
def test_tiny_is_one_formula():
    """The last block computes only what is asked for; here everything, step by step, with torch's own attention."""
    lm = open_one(TINY, Path())
    sheet = lay_out(pairs(lm), 5, lm)
    tokens = pictures(lm)
    x = torch.cat([tokens, lm.table(sheet.text) * 32**0.5], 1) + lm.places(sheet.positions) * 32**0.5
    for block in lm.blocks:
        y = block.norm1(x)
        parts = []
        for head in range(2):
            own = slice(16 * head, 16 * head + 16)
            q, k, v = (layer(y)[..., own] for layer in (block.query, block.key, block.value))
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            scores = (block.sharpness[head].exp() * q @ k.transpose(1, 2)).masked_fill(~sheet.sees, -torch.inf)
            parts.append(scores.softmax(-1) @ v)
        x = x + block.mix(torch.cat(parts, -1))
        x = x + block.mlp(block.norm2(x))
    wanted = lm.norm(x) @ lm.table.weight.T + lm.bias
    got = sheet.say(lm, tokens, sheet.at)
    torch.testing.assert_close(got, wanted[torch.arange(2)[:, None], sheet.at], atol=1e-5, rtol=1e-4)


def test_tiny_takes_texts_that_are_longer_than_its_positions():
    lm = open_language_model(TINY, ["a"], 4)
    sheet = lay_out([[lm.pair("a " * 300, "a")]], 4, lm)
    assert sheet.say(lm, pictures(lm, 1, 4), sheet.at).isfinite().all()


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_a_folder_says_what_transformers_say(tmp_path, family):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_folder(tmp_path / "lm", family)
    lm, plain = PretrainedLM(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    start = lm.embed(torch.tensor(lm.start))[None]
    text = AutoTokenizer.from_pretrained(folder)("what colour is the ball red", add_special_tokens=False).input_ids
    sheet = lay_out([[lm.pair("what colour is the ball", "red")]], 1, lm)
    assert sheet.text[0].tolist() == text
    wanted = plain(torch.tensor([[lm.tokenizer.bos_token_id, *text]])).logits[:, -2:]
    torch.testing.assert_close(sheet.say(lm, start, sheet.at), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_greedy_answers_are_those_that_transformers_generate(tmp_path, family):
    lm = PretrainedLM(write_folder(tmp_path / "lm", family))
    tokens = pictures(lm)
    heads = [[head for head, _ in own] for own in pairs(lm)]
    said = decode(lm, tokens, heads, room=4)
    for row, own in enumerate(heads):
        for number, head in enumerate(own):
            embeddings = torch.cat([tokens[row], lm.embed(torch.tensor(head))])[None]
            made = lm.model.generate(
                inputs_embeds=embeddings, max_new_tokens=4, do_sample=False, eos_token_id=lm.end, pad_token_id=lm.end
            )
            assert said[row][number] == lm.tokenizer.decode(made[0], skip_special_tokens=True).strip()
    assert len({text for own in said for text in own}) > 1


def test_a_folder_is_frozen_unless_it_learns(tmp_path):
    folder = write_folder(tmp_path / "lm")
    frozen, learning = PretrainedLM(folder), PretrainedLM(folder, learns=True)
    assert not any(p.requires_grad for p in frozen.parameters()) and not frozen.train().model.training
    assert all(p.requires_grad for p in learning.parameters()) and learning.train().model.training
    assert frozen.scale == pytest.approx(float(frozen.model.get_input_embeddings().weight.std()))


def test_visual_tokens_are_as_large_as_words(tmp_path):
    lm = PretrainedLM(write_folder(tmp_path / "lm"))
    tokens = Reader(6, lm, side=4, dropout=0.0)(torch.randn(3, 6, 3, 5, generator=torch_rng("maps")))
    assert tokens.shape == (3, 1 + 3 * 4, 32)  # the start, and a grid of at most four a side
    assert float(tokens[:, 1:].detach().std()) == pytest.approx(lm.scale, rel=0.05)
    assert torch.equal(tokens[0, 0], lm.embed(torch.tensor(lm.start))[0])


def test_what_a_folder_holds_is_part_of_what_figures_depend_on(tmp_path):
    folder = write_folder(tmp_path / "lm")
    before = folder_of(str(folder))
    assert folder_of(str(folder)) == before and folder_of(TINY) is None
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert folder_of(str(folder)) != before
    before, weights = folder_of(str(folder)), folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))  # others, as many bytes
    assert folder_of(str(folder)) != before


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_a_missing_folder_says_what_is_expected(tmp_path):
    for ask in (PretrainedLM, folder_of):
        with pytest.raises(UserError, match="no language model at .*none(.|\n)*lm: tiny(.|\n)*hf download"):
            ask(str(tmp_path / "none"))


def test_a_missing_package_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs the package transformers(.|\n)*pip install .radio-distill.language"):
        PretrainedLM(tmp_path)


def test_a_damaged_folder_is_refused(tmp_path):
    folder = write_folder(tmp_path / "lm")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded(.|\n)*safetensors weights"):
        PretrainedLM(folder)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="no end-of-text token"):
        PretrainedLM(write_folder(tmp_path / "lm", eos=False))


def test_more_tokens_than_positions_are_refused(tmp_path):
    lm = PretrainedLM(write_folder(tmp_path / "lm", positions=12))
    sheet = lay_out([[lm.pair("what colour is the ball", "red")]], 8, lm)
    with pytest.raises(UserError, match="has 12 positions(.|\n)*fewer tokens"):
        sheet.say(lm, pictures(lm, 1, 8), sheet.at)


def test_a_model_that_reads_past_its_mask_is_refused(tmp_path, monkeypatch):
    load = language._load

    def deaf(folder, device):
        model, tokenizer = load(folder, device)
        forward = model.forward
        model.forward = lambda attention_mask=None, **rest: forward(attention_mask=torch.ones(2, 3), **rest)
        return model, tokenizer

    monkeypatch.setattr(language, "_load", deaf)
    with pytest.raises(UserError, match="does not heed a mask"):
        PretrainedLM(write_folder(tmp_path / "lm"))
