"""Whether a model was pretrained before a Trainer loaded a checkpoint into it.

Trainer loads a checkpoint's weights before it makes the optimizer. A model that is trained from
scratch looks pretrained from then on, and would get another default learning rate than the run
that is resumed.
"""

from __future__ import annotations

import weakref

from torch import nn

from hf_relopt.groups import looks_pretrained

_SEEN: weakref.WeakKeyDictionary[nn.Module, tuple[bool, str]] = weakref.WeakKeyDictionary()


def remember(model: nn.Module) -> None:
    """Look at ``model`` now: a checkpoint is about to be loaded into it."""
    _SEEN[model] = looks_pretrained(model)


def first_look(model: nn.Module) -> tuple[bool, str]:
    """Whether ``model`` looked pretrained before a checkpoint, and the evidence, in words.

    What was remembered serves once: the model may be trained further, by another Trainer.
    """
    return _SEEN.pop(model, None) or looks_pretrained(model)
