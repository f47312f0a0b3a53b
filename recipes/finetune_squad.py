"""Fine-tune a pretrained model to answer questions about a text, with fromage_spectral.

Without arguments: bert-base-cased on SQuAD 1.1, both from the hub, with the batches, epochs and
schedule of the Fromage paper: 12 windows, 2 epochs, linear decay. Local models and files work as
well.
"""

from __future__ import annotations

from collections.abc import Sequence

from recipe import Recipe, RunArguments
from recipe_start import start_recipe
from squad_arguments import DEFAULTS, AnswererArguments, QuestionSource, SquadRequest

RECIPE = Recipe(
    about=__doc__,
    request=SquadRequest,
    kinds=(AnswererArguments, QuestionSource, RunArguments),
    training=("transformers", "TrainingArguments"),
    defaults=DEFAULTS,
    metric="eval_f1",
    work="squad_training",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a problem that the user can fix ends it with one line."""
    start_recipe(RECIPE, argv)


if __name__ == "__main__":
    main()
