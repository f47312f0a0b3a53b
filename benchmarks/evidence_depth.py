"""Depth: how many hidden layers does an optimizer train? Perceptrons in PyTorch's initialisation.

Units of a hidden layer are as many as inputs. Its weights are drawn from +-1/sqrt(inputs), a third
of the variance that keeps a signal alive through ReLUs, so that what arrives at the end of a deep
network is nearly the same for every picture: a test of trainability, and not of accuracy.
"""

from __future__ import annotations

from evidence_experiment import Cell, Experiment, Options, trained
from image_data import Split, classification_task, kept_pictures
from torch import nn
from training import Task

BATCH = 250
# Every hundredth of a run, learning rates fall by 5 %, as in the paper.
SCHEDULE = "exponential"
_RIVALS = ("sgd", "adamw:weight_decay=0.0", "fromage", "madam", "adamh", "muon")


def perceptron(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """`hidden` layers of ReLU units, as many as inputs each, and one that reads out."""
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(inputs, inputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def depth_task(data: Split, hidden: int, device: str) -> Task:
    """Train on batches of random pictures."""
    return classification_task(
        data,
        lambda: perceptron(data.train.shape.numel(), hidden, data.classes),
        lambda model, pictures: model(pictures.flatten(1)),
        lambda steps, seed: data.train.batches(BATCH, steps, seed),
        device,
        baseline_schedule=SCHEDULE,
        relative_schedule=SCHEDULE,
    )


def _run(cell: Cell, options: Options) -> dict[str, object]:
    side = 28 if options.size == "full" else 8
    data = kept_pictures(options.data, side, 1)
    return trained(depth_task(data, int(cell.setting), options.device), cell)


DEPTH = Experiment(
    title="Depth: how many layers does an optimizer train?",
    about="Perceptrons of L hidden layers, as wide as their inputs, ReLU, PyTorch's own "
    "initialisation; batches of 250, learning rates fall by 5 % every hundredth of the run, "
    "and gradients are clipped to norm 1, for everyone; nobody has weight decay. The paper's "
    "claim: Fromage trains deeper than Adam, and Adam deeper than SGD.",
    measure="train_accuracy",
    rising=True,
    digits=1,
    rivals={
        "quick": ("sgd", "adamw:weight_decay=0.0", "fromage", "madam"),
        "here": _RIVALS,
        "full": (*_RIVALS, "fromage_spectral", "muonh", "lamb", "lion"),
    },
    settings={
        "quick": ("5", "20", "50"),
        "here": ("1", "5", "10", "15", "20", "25", "30", "40", "50"),
        "full": ("1", "10", "20", "25", "30", "35", "40", "50"),
    },
    steps={"quick": 600, "here": 600, "full": 24_000},
    data="digits",
    run=_run,
    full_data="ylecun/mnist",
    # A deep network may need very small steps.
    powers={"here": (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0)},
)
