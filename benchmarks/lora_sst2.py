"""LoRA on SST-2 with several optimizers: the measure for min_scale of zero-start tensors.

LoRA (r = 8, alpha 16, on query and value; the fresh classifier head is trained too) on MiniLM,
STEPS steps of 32 sentences, linear decay without warm-up, gradients clipped to 1.0, no weight
decay, the model's own dropout. LoRA's B starts at zero, so min_scale decides how fast it moves.

    python benchmarks/lora_sst2.py --train_file sst2-train.tsv --validation_file sst2-dev.tsv \\
        --optim adamw:lr=2e-3 --optim fromage --optim madam:lr=.01,min_scale=.1 --seeds 0 1

An optimizer without lr runs at its default rate. Finished runs are not repeated.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, TaskType, get_peft_model
from sst2 import arguments, compare
from transformers import AutoModelForSequenceClassification


def main() -> None:
    """Read the command line and compare."""
    description = (__doc__ or "").replace("STEPS", "300")
    args = arguments(description, steps=300, name="lora_sst2").parse_args()

    def make_model() -> torch.nn.Module:
        model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=8,
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=["query", "value"],
            modules_to_save=["classifier"],
        )
        return get_peft_model(model, config)

    setting = (__doc__ or "").split("\n\n")[1]
    compare(args, make_model, setting, "LoRA on SST-2: accuracy on the validation part")


if __name__ == "__main__":
    main()
