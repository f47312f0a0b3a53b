"""A model card with the metrics and the optimizer of the run.

The Trainer's own card looks for "adam" in the optimizer's name, so it would describe madam as Adam
and list options that madam does not have. This card describes the optimizer that really ran. It is
made of a Trainer, or of the folder that a run leaves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from hf_relopt.errors import ConfigError, one_line
from hf_relopt.hf import card_distance
from hf_relopt.hf.callbacks import unwrapped
from hf_relopt.hf.card_curve import CURVE, draw_curve
from hf_relopt.hf.card_facts import CardDetails, CardFacts, facts_of_folder, facts_of_trainer
from hf_relopt.hf.card_file import CARD, marked, why_kept, with_kept_words, write_card
from hf_relopt.hf.card_metadata import check_card, metadata
from hf_relopt.hf.card_text import card_body
from hf_relopt.hf.log import logger
from hf_relopt.hf.run_files import read_run

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["CardDetails", "WrittenCard", "card_at_end", "card_of_folder", "write_model_card"]
# What recipes draw; their folder needs no second picture.
RECIPE_CURVE = "loss_curve.png"


class WrittenCard(NamedTuple):
    """A card, and what it lacks."""

    path: Path
    notes: tuple[str, ...]


def write_model_card(
    trainer: Trainer, path: str | os.PathLike[str] | None = None, **details: Any
) -> Path:
    """Write README.md for the model a Trainer has trained.

    Args:
        trainer: after `train`, so that optimizer, steps and log are those of the run.
        path: the file; README.md in the output directory if None.
        details: fields of CardDetails. The arguments of the stock `Trainer.create_model_card` are
            among them.

    Returns:
        The path of the card. The file is written atomically.

    Raises:
        TypeError: a name that is not a field of CardDetails.
        ConfigError: a license or a language that the hub would refuse.
    """
    facts = facts_of_trainer(trainer, CardDetails(**details))
    target = Path(path) if path is not None else facts.folder / CARD
    model: Any = trainer.model
    # Between steps, as TRL's trainers write cards, there is no time to read another model.
    return _write(facts, target, None if trainer.is_in_train else model).path


def card_at_end(trainer: Trainer, **details: Any) -> Path | None:
    """Write the card at the end of a training, where nobody else's would be lost.

    Call it on the main process. What goes wrong is logged: a training is not lost over its card.

    Returns:
        The path; None if there is no card: of another optimizer, or in the place of another's.
    """
    folder = Path(trainer.args.output_dir)
    later = f"`hf-relopt card {folder}` makes it later."
    if unwrapped(trainer.optimizer) is None:
        return None
    try:
        reason = why_kept(folder / CARD)
        if reason is not None:
            logger.info("no model card is written: %s, and is kept.", reason)
            return None
        path = write_model_card(trainer, **details)
        logger.info("model card: %s", path)
        return path
    except Exception as error:
        logger.warning("the model card could not be written: %s. %s", one_line(error), later)
        return None


def card_of_folder(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    online: bool = False,
    **details: Any,
) -> WrittenCard:
    """Write the card of a run from its folder alone.

    Args:
        folder: the output_dir of a run, finished or not.
        path: the file; README.md in the folder if None.
        overwrite: also if there is a card that somebody wrote or changed by hand.
        online: the base model may be downloaded.
        details: fields of CardDetails.

    Returns:
        Where the card is, and notes on what it lacks.

    Raises:
        FormatError: no such folder, or no run in it.
        ConfigError: a card is there that would be lost; details that the hub would refuse.
    """
    facts = facts_of_folder(read_run(Path(folder)), CardDetails(**details))
    target = Path(path) if path is not None else facts.folder / CARD
    if target.is_dir() or not target.parent.is_dir():
        raise ConfigError(f"{target} is a folder, or in none. Name a file in a folder that exists.")
    reason = None if overwrite else why_kept(target)
    if reason is not None:
        raise ConfigError(
            f"{reason}, so it is kept. Pass --overwrite to replace it, or --output FILE to write "
            "the card elsewhere."
        )
    return _write(facts, target, online=online)


def _write(
    facts: CardFacts, target: Path, model: nn.Module | None = None, online: bool | None = None
) -> WrittenCard:
    head = with_kept_words(metadata(facts), target)
    distance = card_distance.Section()
    if online is not None:
        distance = card_distance.of_folder(facts, online=online)
    elif model is not None:
        distance = card_distance.of_model(facts, model)
    curve, no_curve = _curve(facts, target.parent)
    facts = facts.noting(*filter(None, (no_curve, distance.note)))
    body = card_body(facts, curve=curve, distance=distance.text)
    text = f"---\n{head.to_yaml()}\n---\n\n{marked(body)}"
    check_card(text)
    write_card(target, text)
    return WrittenCard(target, facts.notes)


def _curve(facts: CardFacts, folder: Path) -> tuple[str | None, str | None]:
    """The picture's file name, and why there is none."""
    if facts.told.curve:
        return facts.told.curve, None
    if (folder / RECIPE_CURVE).is_file():
        return RECIPE_CURVE, None
    if facts.lacks_evaluations and facts.finished and (folder / CURVE).is_file():
        return CURVE, None  # drawn at the end of training, from all that was logged
    name = facts.part("optimizer").get("name")
    title = f"{facts.name}: {name}" if name else facts.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if draw_curve(facts.log, folder / CURVE, title):
            return CURVE, None
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        return None, f"The loss could not be drawn: {one_line(error)}."
    return None, None
