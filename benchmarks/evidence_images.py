"""Pictures: a ResNet and a vision transformer of Transformers, by accuracy and by held-out loss.

The paper saw Fromage overfit, and bounded the norms of weights: a network that is right about every
picture of its training part goes on to lower the loss by longer weights of the last layer, and is
then very sure of its errors. So the loss on held-out pictures is measured beside accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from evidence_experiment import Cell, Experiment, Options, trained
from image_data import Split, classification_task, kept_pictures
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
        size: "full" for a ResNet-18 with a stem for pictures of 32 pixels, and a ViT-S, else
            smaller ones.
    """
    full = size == "full"
    if kind == "resnet":
        resnet = ResNetForImageClassification(
            ResNetConfig(
                num_channels=colors,
                embedding_size=64 if full else 16,
                hidden_sizes=[64, 128, 256, 512] if full else [16, 32, 64],
                depths=[2] * (4 if full else 3),
                layer_type="basic",
                num_labels=classes,
            )
        )
        if full:
            # Pictures of 32 pixels would be 8 wide after the stem for large ones.
            stem = resnet.resnet.embedder
            stem.embedder.convolution = nn.Conv2d(colors, 64, 3, padding=1, bias=False)
            stem.pooler = nn.Identity()
        return resnet
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
    """Train on batches of random pictures, with crops and mirror images at full size."""
    colors, side = data.train.shape[0], data.train.shape[1]

    def batches(steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        found = data.train.batches(BATCH, steps, seed)
        if size != "full":
            return found
        random = torch.Generator().manual_seed(seed)
        return ((varied(pictures, random), labels) for pictures, labels in found)

    return classification_task(
        data,
        lambda: network(kind, size, colors, side, data.classes),
        lambda model, pictures: model(pixel_values=pictures).logits,
        batches,
        device,
        baseline_schedule="warmup_linear",
    )


def varied(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Each picture cut out of a border of 4 pixels, and mirrored or not: [pictures, colors, side,
    side] as before."""
    count, _, side, _ = pictures.shape
    padded = F.pad(pictures, (4, 4, 4, 4))
    rows, columns = torch.randint(9, (2, count, 1), generator=random) + torch.arange(side)
    mirrored = torch.rand(count, 1, generator=random) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    found = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2)


def _run(cell: Cell, options: Options) -> dict[str, object]:
    small = options.size != "full"
    side = RESNET_SIDE if cell.setting == "resnet" or not small else 8
    data = kept_pictures(options.data, side, 1 if small else 3)
    return trained(picture_task(data, cell.setting, options.size, options.device), cell)


PICTURES = Experiment(
    title="Pictures: accuracy, and the loss on held-out pictures",
    about="A ResNet and a vision transformer of Transformers; batches of 128, gradients clipped to "
    "norm 1. Ours decay linearly to 0, the others warm up before that; weight decay is in the"
    " names. The small pass has no crops and no mirror images, the full one has both, and "
    "scales any set to 32 pixels a side. The paper's claim: Fromage needs no tuning, and a "
    "bound on its norms (p_bound) keeps its held-out loss low.",
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
        "full": (
            *_RIVALS,
            "lamb:weight_decay=0.1",
            "lion:weight_decay=0.1",
            "lars:weight_decay=0.0005",
        ),
    },
    settings={"quick": ("vit",), "here": ("resnet", "vit"), "full": ("resnet", "vit")},
    steps={"quick": 500, "here": 500, "full": 78_000},
    data="digits",
    run=_run,
    full_data="uoft-cs/cifar10",
    near=0.05,
)
