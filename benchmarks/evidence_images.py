"""Pictures: a ResNet and a vision transformer of Transformers, by accuracy and by held-out loss.

The paper saw Fromage overfit, and bounded the norms of weights: a network that is right about every
picture of its training part goes on to lower the loss by longer weights of the last layer, and is
then very sure of its errors. So the loss on held-out pictures is measured beside accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from evidence_experiment import Cell, Experiment, Options, trained
from image_data import Split, measured, read_pictures
from torch import Tensor, nn
from torch.nn import functional as F
from training import Task
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

BATCH = 128
# The stem of a ResNet makes a quarter of its input's side.
RESNET_SIDE = 32
_RIVALS = (
    "sgd:weight_decay=0.0005",
    "adamw:weight_decay=0.1",
    "muon:weight_decay=0.1",
    "adamh",
    "muonh",
    "fromage",
    "fromage:p_bound=1.0",
    "fromage:p_bound=2.0",
    "fromage:p_bound=3.0",
    "fromage_spectral",
    "madam",
)


def network(kind: str, size: str, colors: int, side: int, classes: int) -> nn.Module:
    """A network in Transformers' own initialisation.

    Args:
        kind: "resnet" or "vit".
        size: "full" for the paper's ResNet-18 and a ViT-S, else smaller ones.
    """
    full = size == "full"
    if kind == "resnet":
        return ResNetForImageClassification(
            ResNetConfig(
                num_channels=colors,
                embedding_size=64 if full else 16,
                hidden_sizes=[64, 128, 256, 512] if full else [16, 32, 64],
                depths=[2] * (4 if full else 3),
                layer_type="basic",
                num_labels=classes,
            )
        )
    return ViTForImageClassification(
        ViTConfig(
            num_channels=colors,
            image_size=side,
            patch_size=4 if full else 2,
            hidden_size=384 if full else 64,
            num_hidden_layers=12 if full else 4,
            num_attention_heads=6 if full else 4,
            intermediate_size=1536 if full else 256,
            num_labels=classes,
        )
    )


def picture_task(data: Split, kind: str, size: str, device: str) -> Task:
    """Train on random batches, with crops and mirror images at full size; measure on the others."""
    colors, side = data.train.shape[0], data.train.shape[1]

    def batches(steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        return data.train.batches(BATCH, steps, seed)

    def logits(model: nn.Module, pictures: Tensor) -> Tensor:
        found: Tensor = model(pixel_values=pictures.to(device)).logits
        return found

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(logits(model, batch[0]), batch[1].to(device))

    def evaluate(model: nn.Module) -> dict[str, float]:
        train, valid = (measured(partial(logits, model), part) for part in (data.train, data.valid))
        return {
            "accuracy": valid["accuracy"],
            "valid_loss": valid["loss"],
            "train_accuracy": train["accuracy"],
            "train_loss": train["loss"],
        }

    return Task(
        make_model=lambda: network(kind, size, colors, side, data.classes),
        batches=batches,
        loss=loss,
        evaluate=evaluate,
        glance=lambda model: measured(partial(logits, model), data.valid)["loss"],
        baseline_schedule="warmup_linear",
        device=device,
    )


@cache
def _data(source: str, side: int, colors: int) -> Split:
    return read_pictures(source, side, colors)


def _run(cell: Cell, options: Options) -> dict[str, object]:
    small = options.size != "full"
    side = RESNET_SIDE if cell.setting == "resnet" or not small else 8
    data = _data(options.data, side, 1 if small else 3)
    return trained(picture_task(data, cell.setting, options.size, options.device), cell)


PICTURES = Experiment(
    title="Pictures: accuracy, and the loss on held-out pictures",
    about="A ResNet and a vision transformer of Transformers; batches of 128. Ours decay linearly "
    "to 0, the others warm up before that. The paper's claim: Fromage needs no tuning, and a bound "
    "on its norms (p_bound) keeps its held-out loss low.",
    measure="valid_loss",
    rising=False,
    digits=3,
    rivals={
        "quick": (
            "sgd:weight_decay=0.0005",
            "adamw:weight_decay=0.1",
            "fromage",
            "fromage:p_bound=1.0",
            "madam",
        ),
        "here": _RIVALS,
        "full": (*_RIVALS, "lamb", "lion", "lars"),
    },
    settings={"quick": ("vit",), "here": ("resnet", "vit"), "full": ("resnet", "vit")},
    steps={"quick": 500, "here": 500, "full": 78_000},
    data="digits",
    run=_run,
    full_data="uoft-cs/cifar10",
)
