"""The six tasks of quality.py: their data, sizes, lengths, and what a page says of them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from gpt2_text import Size, characters, text_task
from sst2 import read_sentences, sst2_task
from training import Task
from transformers import AutoModelForSequenceClassification
from word_pieces import kept_word_pieces, word_pieces

# Heads are 32 wide at every size. Layers x width.
WIDTHS = {
    "2x64": Size(2, 64, 2),
    "4x128": Size(4, 128, 4),
    "2x256": Size(2, 256, 8),
    "2x512": Size(2, 512, 16),
    "8x64": Size(8, 64, 2),
}
GPT2 = Size(layers=12, width=768, heads=12, context=1024, batch=8)
# A multiple of 64, which tensor cores want; GPT-2's own 50,257 is none.
GPT2_VOCABULARY = 50_304
# Of the two tasks of word pieces.
PIECES = Size(layers=4, width=256, heads=4, context=128, batch=8)
BASE = "4x128"
SMALLEST = "2x64"


@dataclass(frozen=True)
class Facts:
    """What is fixed about a task.

    Attributes:
        title: heading of its page.
        steps: length of a run unless the command line says otherwise.
        measure: the figure by which optimizers are ranked.
        unit: of the loss.
        setting: a few sentences for its page; STEPS is replaced.
        two_files: does it need a second file to measure on?
    """

    title: str
    steps: int
    measure: str
    unit: str
    setting: str
    two_files: bool


_SCHEDULES = (
    "gradients clipped to norm 1.0 for everyone. AdamW, Muon and SGD warm up for 100 steps and "
    "follow a cosine to a tenth, betas (.9, .99), weight decay .1 (SGD: none); the others decay "
    "linearly to 0 from the first step. `muon` is torch's on hidden matrices with AdamW on the "
    "rest; `adamh` and `muonh` have AdamW on embeddings and vectors."
)

FACTS = {
    "shakespeare": Facts(
        "Characters of a text",
        2000,
        "validation_loss",
        "nats per character",
        "nanoGPT's setting for a CPU: GPT-2 with 4 layers, 4 heads, width 128, context 64, no "
        "dropout, tied embeddings; STEPS steps of 12 x 64 characters of the first 90 % of the "
        f"file, measured on the rest; {_SCHEDULES}",
        False,
    ),
    "wordpieces": Facts(
        "Word pieces",
        1500,
        "validation_loss",
        "nats per piece",
        "GPT-2 with 4 layers, 4 heads, width 256, context 128, no dropout, tied embeddings; a "
        "byte-level BPE of 4,096 pieces learnt from the training file; STEPS steps of 8 x 128 "
        f"pieces of one file, measured on the other; {_SCHEDULES}",
        True,
    ),
    "pythontext": Facts(
        "Python source",
        1000,
        "validation_loss",
        "nats per piece",
        "GPT-2 with 4 layers, 4 heads, width 256, context 128, no dropout, tied embeddings; a "
        "byte-level BPE of 4,096 pieces; STEPS steps of 8 x 128 pieces of the source code of "
        "Python's standard library and of torch (`python_text.py --limit 12000000`), of which no "
        "part comes twice but by chance, measured on files that are held out; " + _SCHEDULES,
        True,
    ),
    "sst2": Facts(
        "Fine-tuning on SST-2",
        600,
        "accuracy",
        "nats per sentence",
        "MiniLM with a fresh classifier head, every weight trained, STEPS steps of 32 sentences, "
        "linear decay without warm-up for everyone, gradients clipped to norm 1.0, no weight "
        "decay, the model's own dropout, AdamW's usual betas (.9, .999). `muon`, `adamh` and "
        "`muonh` have AdamW on embeddings, head and vectors.",
        True,
    ),
    "gpt2": Facts(
        "GPT-2 124M",
        2000,
        "validation_loss",
        "nats per piece",
        "GPT-2 with 12 layers, 12 heads, width 768, context 1,024, no dropout, tied embeddings; a "
        f"byte-level BPE of {GPT2_VOCABULARY:,} pieces learnt from the training file; STEPS steps "
        "of 8 x 1,024 pieces, passes in bfloat16 on a GPU, weights and steps in float32; the "
        "source code of Python's standard library and of torch (`python_text.py`), every "
        f"twentieth file held out to measure on; {_SCHEDULES}",
        True,
    ),
    "widths": Facts(
        "One rate for every size",
        2000,
        "validation_loss",
        "nats per character",
        "GPT-2 of five sizes (layers x width, heads 32 wide) on the characters of a text; context "
        "64, no dropout, tied embeddings; STEPS steps of 12 x 64 characters of the first 90 % of "
        f"the file, measured on the rest; {_SCHEDULES}",
        False,
    ),
}


def tasks(args: argparse.Namespace) -> dict[str, Task]:
    """The task that the command line names, by size; one size named "" if there is no choice."""
    if args.task == "sst2":
        data = read_sentences(args.train_file, args.model)
        valid = read_sentences(args.valid_file, args.model)
        return {"": sst2_task(lambda: _classifier(args.model), data, valid)}
    if args.task in ("wordpieces", "pythontext"):
        codes = word_pieces(_read(args.train_file), _read(args.valid_file))
        return {"": text_task(PIECES, codes, args.batches)}
    if args.task == "gpt2":
        codes = kept_word_pieces(args.codes, args.train_file, args.valid_file, GPT2_VOCABULARY)
        return {"": text_task(GPT2, codes, args.batches, args.device, args.compile)}
    codes = characters(_read(args.train_file))
    if args.task == "shakespeare":
        size = Size() if args.batch is None else Size(batch=args.batch)
        return {"": text_task(size, codes, args.batches)}
    return {size: text_task(WIDTHS[size], codes, args.batches) for size in args.sizes}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _classifier(model: str) -> AutoModelForSequenceClassification:
    return AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
