"""A small GPT-2 that learns one text, token by token: model, windows and measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import Task
from transformers import GPT2Config, GPT2LMHeadModel

EVAL_BATCH = 32
# Validation windows are the same for every run, whatever its seed.
EVAL_SEED = 1234
GLANCE_BATCHES = 8


@dataclass(frozen=True)
class Size:
    """A GPT-2's dimensions, and the batch it is trained with.

    The default is nanoGPT's setting for a CPU. `inner`: units between the two matrices of a block;
    None for four widths.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64
    batch: int = 12
    inner: int | None = None


@dataclass(frozen=True)
class Codes:
    """A text as token numbers, the part to train on and the part to measure on."""

    train: Tensor
    valid: Tensor
    vocabulary: int


def characters(text: str) -> Codes:
    """The characters of a text: the first 90 % train, the rest validates."""
    letters = sorted(set(text))
    index = {letter: place for place, letter in enumerate(letters)}
    codes = torch.tensor([index[letter] for letter in text])
    cut = int(0.9 * len(codes))
    return Codes(codes[:cut], codes[cut:], len(letters))


def text_task(
    size: Size,
    codes: Codes,
    batches: int,
    device: str = "cpu",
    compiled: bool = False,
    tied: bool = True,
) -> Task:
    """Train a GPT-2 of `size` on random windows; measure on `batches` batches of 32 windows.

    On a GPU passes are in bfloat16 (autocast), weights and steps in float32. `compiled`: the passes
    of training go through torch.compile. `tied`: the head is the table of tokens.

    Raises:
        SystemExit: a part of the text is shorter than two windows.
    """
    shorter = min(len(codes.train), len(codes.valid))
    if shorter < 2 * size.context:
        raise SystemExit(
            f"a part of the text has {shorter} tokens; give at least {2 * size.context}, "
            "two windows, for training and for validation"
        )

    def windows(steps: int, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            yield _windows(codes.train, size.batch, size.context, generator)

    def measure(model: nn.Module, count: int) -> float:
        return _evaluate(model, codes.valid, count, size.context)

    return Task(
        make_model=lambda: make_model(size, codes.vocabulary, tied),
        batches=windows,
        loss=torch.compile(_loss) if compiled else _loss,
        evaluate=lambda model: {"validation_loss": measure(model, batches)},
        glance=lambda model: measure(model, min(GLANCE_BATCHES, batches)),
        baseline_schedule="cosine",
        defaults={"betas": (0.9, 0.99), "weight_decay": 0.1},
        device=device,
    )


def make_model(size: Size, vocabulary: int, tied: bool = True) -> GPT2LMHeadModel:
    """No dropout, the library's own initialisation, and perhaps one table for both ends."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=size.context,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        n_inner=size.inner,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # GPT-2's own "gelu_new" is this function in seven passes: the run takes a third longer.
        activation_function="gelu_pytorch_tanh",
        use_cache=False,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def _windows(codes: Tensor, count: int, context: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(codes) - context, (count, 1), generator=generator)
    return codes[starts + torch.arange(context + 1)].long()


def _loss(model: nn.Module, windows: Tensor) -> Tensor:
    windows = windows.to(model.device)
    with torch.autocast("cuda", torch.bfloat16, enabled=windows.is_cuda):
        logits = model(input_ids=windows[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def _evaluate(model: nn.Module, valid: Tensor, batches: int, context: int) -> float:
    generator = torch.Generator().manual_seed(EVAL_SEED)
    losses = [_loss(model, _windows(valid, EVAL_BATCH, context, generator)) for _ in range(batches)]
    return torch.stack(losses).mean().item()
