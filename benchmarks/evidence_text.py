"""Text: the papers' word-level transformer, and a GPT-2 of several widths and depths on characters.

Words are those of WikiText's own files, in which rare ones are <unk> already.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch
from evidence_experiment import Cell, Experiment, Options, trained
from gpt2_text import Codes, Size, characters, text_task
from local_text import PYTHON, text_of

# The papers' transformer: two layers of 200 units, with tables of their own at both ends; 13.8
# million weights with WikiText-2's 33,278 words.
WORDS = Size(layers=2, width=200, heads=2, context=35, batch=20, inner=200)
MOST_WORDS = {"quick": 4_096, "here": 4_096, "full": 33_278}
BATCHES = {"quick": 20, "here": 20, "full": 100}
_FIRST = ("sgd", "adamw", "fromage", "fromage_spectral", "madam:p_scale=5.0")
_RIVALS = (
    "sgd",
    "adamw",
    "muon",
    "adamh",
    "muonh",
    "fromage",
    "fromage_spectral",
    "madam:p_scale=5.0",
    "integer_madam:format=lns12,headroom=5.0",
)
_MORE = ("lamb", "lion", "lars", "fromage_sinkhorn", "fromage_factored", "fromage_momentum")


def words(train: str, valid: str, most: int) -> Codes:
    """Words and ends of lines as numbers; the rarest of more than `most` are one word."""
    known = ["<unk>"]
    counts = Counter(_split(train))
    known += [word for word, _ in counts.most_common(most) if word != "<unk>"][: most - 1]
    index = {word: place for place, word in enumerate(known)}
    parts = [torch.tensor([index.get(word, 0) for word in _split(text)]) for text in (train, valid)]
    return Codes(parts[0], parts[1], len(known))


def _split(text: str) -> list[str]:
    return text.replace("\n", " <eos> ").split()


@cache
def _words(source: str, valid_file: Path | None, most: int) -> Codes:
    if valid_file is None:
        return words(text_of(source, "train"), text_of(source, "validation"), most)
    return words(text_of(source), text_of(str(valid_file)), most)


@cache
def _characters(source: str) -> Codes:
    return characters(text_of(source))


def _run_words(cell: Cell, options: Options) -> dict[str, Any]:
    codes = _words(options.data, options.valid_file, MOST_WORDS[options.size])
    batches = BATCHES[options.size]
    return trained(text_task(WORDS, codes, batches, options.device, tied=False), cell)


def _run_characters(cell: Cell, options: Options) -> dict[str, Any]:
    layers, width = map(int, cell.setting.split("x"))
    size = Size(layers, width, width // 32)
    return trained(
        text_task(size, _characters(options.data), BATCHES[options.size], options.device), cell
    )


TEXT = Experiment(
    title="Words: the papers' transformer on WikiText-2",
    about="Two layers, 200 wide, context of 35 words, batches of 20; tables of words of their own "
    "at both ends. Ours decay linearly to 0, the others warm up and follow a cosine to a tenth; "
    "gradients are clipped to norm 1 for everyone. AdamW and Muon have a weight decay of .1, the "
    "others none, and SGD a momentum of .9.",
    measure="validation_loss",
    rising=False,
    digits=3,
    rivals={
        "quick": _FIRST,
        "here": _RIVALS,
        "full": (*_RIVALS, *_MORE),
    },
    settings={size: ("words",) for size in MOST_WORDS},
    steps={"quick": 300, "here": 300, "full": 59_000},
    data=PYTHON,
    run=_run_words,
    full_data="Salesforce/wikitext",
    near=0.1,
)

RATES = Experiment(
    title="Sizes: how far does the best learning rate move?",
    about="A GPT-2 of L layers and a width on the characters of a text, context 64, batches of 12, "
    "schedules, clipping and weight decay as for words.",
    measure="validation_loss",
    rising=False,
    digits=3,
    rivals={
        "quick": _FIRST,
        "here": ("sgd", "adamw", "muonh", "fromage", "fromage_spectral", "madam:p_scale=5.0"),
        "full": (*_RIVALS, *_MORE),
    },
    settings={
        "quick": ("2x64",),
        "here": ("2x64", "4x64", "8x64", "2x128", "2x256", "4x128"),
        "full": tuple(f"{layers}x{width}" for layers in (2, 4, 8) for width in (64, 128, 256)),
    },
    steps={"quick": 300, "here": 300, "full": 2_000},
    data=PYTHON,
    run=_run_characters,
    near=0.1,
)
