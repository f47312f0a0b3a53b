"""Train a causal language model with fromage_spectral, from scratch or from a pretrained one.

Without arguments: a GPT-2 of a few million parameters on the source text of the Python standard
library, in under four minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence

from model_source import ModelSource
from pretrain_arguments import DEFAULTS, BlockArguments, PretrainRequest, TextSource, complete
from recipe import Recipe, RunArguments
from recipe_start import start_recipe

RECIPE = Recipe(
    about=__doc__,
    request=PretrainRequest,
    kinds=(ModelSource, TextSource, BlockArguments, RunArguments),
    training=("transformers", "TrainingArguments"),
    defaults=DEFAULTS,
    metric="eval_perplexity",
    work="causal_training",
    complete=complete,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a problem that the user can fix ends it with one line."""
    start_recipe(RECIPE, argv)


if __name__ == "__main__":
    main()
