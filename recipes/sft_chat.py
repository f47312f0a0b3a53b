"""Fine-tune a chat model on conversations with TRL's SFTTrainer and fromage_spectral.

All weights, or LoRA adapters with --lora_rank. Without arguments: Qwen2.5-0.5B-Instruct on
Capybara, both from the hub. Local models and files work as well. Needs trl, and peft for
--lora_rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from chat_arguments import DEFAULTS, ChatModelArguments, ChatRequest, ChatSource, extras
from recipe import Recipe, RunArguments
from recipe_start import start_recipe

RECIPE = Recipe(
    about=__doc__,
    request=ChatRequest,
    kinds=(ChatModelArguments, ChatSource, RunArguments),
    training=("trl", "SFTConfig"),
    defaults=DEFAULTS,
    metric="eval_loss",
    work="chat_training",
    extras=extras,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a problem that the user can fix ends it with one line."""
    start_recipe(RECIPE, argv)


if __name__ == "__main__":
    main()
