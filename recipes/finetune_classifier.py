"""Fine-tune a pretrained model to classify texts, with fromage_spectral.

Without arguments: MiniLM on SST-2, both from the hub. Local models and tables work as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from classifier_arguments import (
    DEFAULTS,
    ClassifierArguments,
    ClassifierRequest,
    LabelledSource,
)
from recipe import Recipe, RunArguments
from recipe_start import start_recipe

RECIPE = Recipe(
    about=__doc__,
    request=ClassifierRequest,
    kinds=(ClassifierArguments, LabelledSource, RunArguments),
    training=("transformers", "TrainingArguments"),
    defaults=DEFAULTS,
    metric="eval_accuracy",
    work="classifier_training",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a problem that the user can fix ends it with one line."""
    start_recipe(RECIPE, argv)


if __name__ == "__main__":
    main()
