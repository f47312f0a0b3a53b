"""Pictures with classes for the experiments: scikit-learn's digits, MNIST's files, sets of the hub.

The small sources are those of recipes/digit_images.py, at most 10,000 pictures, and a fifth of them
is kept to measure on. A set of the hub has its own parts for training and for measuring.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import Task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes"))

from digit_images import DIGITS, read_images
from local_files import looks_local

EVAL_BATCH = 500
# Which fifth of a small set is kept follows this, whatever a run's seed.
SPLIT_SEED = 0
# Numbers of a part of a set that is decoded once and kept; a larger one is read as it is used.
_MOST_KEPT = 2**28


@dataclass(frozen=True)
class Pictures:
    """One part of a set.

    Attributes:
        shape: of a picture, [colors, side, side].
        count: how many there are.
        read: places -> float32 [places, colors, side, side], of mean 0 and deviation 1, and classes
            int64 [places].
    """

    shape: torch.Size
    count: int
    read: Callable[[Tensor], tuple[Tensor, Tensor]]

    def batches(self, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random batches: in each epoch every picture at most once, and no smaller batch."""
        generator = torch.Generator().manual_seed(seed)
        size, done = min(size, self.count), 0
        while done < steps:
            order = torch.randperm(self.count, generator=generator)
            for places in order[: self.count // size * size].split(size)[: steps - done]:
                yield self.read(places)
                done += 1

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them, in batches."""
        return map(self.read, torch.arange(self.count).split(EVAL_BATCH))


@dataclass(frozen=True)
class Split:
    """The part to train on, and the part to measure on."""

    train: Pictures
    valid: Pictures
    classes: int


def read_pictures(source: str, side: int, colors: int) -> Split:
    """Read a set; pictures are scaled to `side` x `side`.

    Args:
        source: "digits"; a folder with MNIST's idx files, a .npz or .parquet file; a hub name.
        colors: 1 or 3. The small sources have none.

    Raises:
        SystemExit: it cannot be read; the message says where to get it.
    """
    is_small = source == DIGITS or looks_local(source) or Path(source).expanduser().exists()
    if not is_small:
        return _from_the_hub(source, side, colors)
    from hf_relopt.errors import ConfigError

    try:
        images = read_images(source, min(side, 8) if source == DIGITS else side)
    except ConfigError as error:
        raise SystemExit(f"--data {source}: {error}") from error
    own = round(images.pixels.shape[1] ** 0.5)
    pixels = images.pixels.view(-1, 1, own, own)
    if own != side:
        pixels = F.interpolate(pixels, side, mode="bilinear")
    pixels = pixels.expand(-1, colors, -1, -1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    cut = len(pixels) * 4 // 5
    train, valid = (_of_tensors(pixels[o], images.labels[o]) for o in (order[:cut], order[cut:]))
    return Split(train, valid, images.classes)


@cache
def kept_pictures(source: str, side: int, colors: int) -> Split:
    """What ``read_pictures`` gives, read once in a process."""
    return read_pictures(source, side, colors)


def _of_tensors(pixels: Tensor, labels: Tensor) -> Pictures:
    return Pictures(pixels.shape[1:], len(labels), lambda places: (pixels[places], labels[places]))


def _from_the_hub(name: str, side: int, colors: int) -> Split:
    from datasets import Image, load_dataset

    try:
        sets = load_dataset(name)
    except Exception as error:
        raise SystemExit(
            f"--data {name}: cannot be read ({error}). Give the name of a set of pictures on the "
            "hub, such as ylecun/mnist or uoft-cs/cifar10, a folder with MNIST's idx files, or "
            "digits, which need no download."
        ) from error
    # Where there are both, nobody has the classes of the test part.
    held_out = next((part for part in ("validation", "test") if part in sets), None)
    columns = sets["train"].column_names
    picture = next((column for column in ("image", "img") if column in columns), None)
    # CIFAR-100 has two kinds of classes.
    label = next((column for column in ("label", "fine_label") if column in columns), None)
    if held_out is None or picture is None or label is None:
        raise SystemExit(
            f"--data {name}: it has the parts {', '.join(sets)} and the columns "
            f"{', '.join(columns)}; needed are a test or validation part, image (or img), and "
            "label (or fine_label)"
        )
    mode = "RGB" if colors == 3 else "L"
    parts = [
        _of_rows(sets[part].cast_column(picture, Image(mode=mode)), (picture, label), side)
        for part in ("train", held_out)
    ]
    return Split(*parts, sets["train"].features[label].num_classes)


def _of_rows(rows: Any, columns: tuple[str, str], side: int) -> Pictures:
    import numpy as np

    def pixels_of(image: Any) -> Tensor:
        values = torch.from_numpy(np.asarray(image.resize((side, side)), dtype=np.float32) / 255)
        return (values.unsqueeze(0) if values.dim() == 2 else values.permute(2, 0, 1)) * 4 - 2

    def read(places: Tensor) -> tuple[Tensor, Tensor]:
        batch = rows[places.tolist()]
        pictures = torch.stack([pixels_of(image) for image in batch[columns[0]]])
        return pictures, torch.tensor(batch[columns[1]])

    if rows[0][columns[1]] < 0:
        raise SystemExit("a part of the set has no classes: its labels are below 0")
    shape = pixels_of(rows[0][columns[0]]).shape
    if len(rows) * shape.numel() > _MOST_KEPT:
        return Pictures(shape, len(rows), read)
    parts = [read(places) for places in torch.arange(len(rows)).split(EVAL_BATCH)]
    pictures, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return _of_tensors(pictures, labels)


def classification_task(
    data: Split,
    make_model: Callable[[], nn.Module],
    logits: Callable[[nn.Module, Tensor], Tensor],
    batches: Callable[[int, int], Iterator[tuple[Tensor, Tensor]]],
    device: str,
    **schedules: str,
) -> Task:
    """Learn the classes of pictures; accuracy and loss on both parts of the set.

    Args:
        data: what is measured.
        make_model: a new model.
        logits: (model, pictures on the device) -> [pictures, classes].
        batches: (steps, seed) -> pictures and classes of each step.
        device: where the model lies.
        schedules: see Task.
    """

    def found(model: nn.Module, pictures: Tensor) -> Tensor:
        return logits(model, pictures.to(device))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(found(model, batch[0]), batch[1].to(device))

    def evaluate(model: nn.Module) -> dict[str, float]:
        train, valid = (measured(partial(found, model), part) for part in (data.train, data.valid))
        return {
            "accuracy": valid["accuracy"],
            "valid_loss": valid["loss"],
            "train_accuracy": train["accuracy"],
            "train_loss": train["loss"],
        }

    return Task(
        make_model=make_model,
        batches=batches,
        loss=loss,
        evaluate=evaluate,
        glance=lambda model: measured(partial(found, model), data.valid)["loss"],
        device=device,
        **schedules,  # type: ignore[arg-type]
    )


@torch.no_grad()
def measured(logits: Callable[[Tensor], Tensor], part: Pictures) -> dict[str, float]:
    """Accuracy in percent and mean cross-entropy over a whole part."""
    right, loss = 0, 0.0
    for pictures, labels in part.in_order():
        found = logits(pictures)
        labels = labels.to(found.device)
        right += int((found.argmax(-1) == labels).sum())
        loss += F.cross_entropy(found.float(), labels, reduction="sum").item()
    return {"accuracy": round(100 * right / part.count, 2), "loss": round(loss / part.count, 4)}
