"""Fine-tune all weights of a small BERT on SST-2 with several optimizers.

MiniLM with a fresh classifier head, every weight trained, STEPS steps of 32 sentences, linear
decay without warm-up, gradients clipped to 1.0, no weight decay, the model's own dropout. AdamW's
default rate here is the Trainer's, 5e-5.

    python benchmarks/finetune_sst2.py --train_file sst2-train.tsv \\
        --validation_file sst2-dev.tsv --optim adamw:lr=5e-5 --optim fromage --optim madam

An optimizer without lr runs at its default rate. Finished runs are not repeated.
"""

from __future__ import annotations

import torch
from sst2 import arguments, compare
from transformers import AutoModelForSequenceClassification


def main() -> None:
    """Read the command line and compare."""
    description = (__doc__ or "").replace("STEPS", "600")
    args = arguments(description, steps=600, name="finetune_sst2").parse_args()

    def make_model() -> torch.nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)

    setting = (__doc__ or "").split("\n\n")[1]
    compare(args, make_model, setting, "Fine-tuning on SST-2: accuracy on the validation part")


if __name__ == "__main__":
    main()
