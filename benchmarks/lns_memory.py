"""How much memory does training in codes take, beside training in float32?

The weights of a GPT-2 in float32, or converted to a logarithmic format, are trained for three steps
as in training_memory.py. "Held" is what remains between steps, weights and optimizer state: the
memory that their real tensors lie in, codes, scales and all. A model is made in float32 before it
is converted, which alone takes more than its codes do: a peak from the model on has that in it, and
one of the steps has not, as where a model is loaded in codes.

    python benchmarks/lns_memory.py
    python benchmarks/lns_memory.py --device cuda --layers 22 --width 2048
"""

from __future__ import annotations

import json

from run_log import MONTH, RunLog, markdown_table, write_report
from training_memory import MIB, arguments, cells, child, measure, setting

WAYS = (
    "adamw",
    "madam",
    "integer_madam:format=lns8",
    "integer_madam:format=lns12",
    "integer_madam:format=lns8 inside",
)


def main() -> None:
    """Read the command line, run what is missing, write the table."""
    args = arguments(__doc__, WAYS).parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    name = f"lns_memory_{args.device}_{MONTH}"
    log = RunLog(args.out / f"{name}.jsonl")
    measure(args, args.way or WAYS, log, __file__)
    rows = [
        [
            *cells(each),
            f"{each['held_bytes'] / each['parameters']:.3f}",
            f"{each['steps_peak_bytes'] / MIB:,.0f}",
            f"{each['steps_peak_bytes'] / each['parameters']:.2f}",
            f"{each['peak_bytes'] / MIB:,.0f}",
        ]
        for each in log.records()
    ]
    header = ["optimizer", "seen as", "parameters", "held, bytes per parameter"]
    header += ["peak of the steps, MiB", "bytes per parameter", "peak from the model on, MiB"]
    table = markdown_table(header, rows)
    print(table)
    text = (
        f"{setting()}. The peak of the steps is of all that they allocate, weights and activations "
        "included; the one from the model on also of making and converting it. Held are weights "
        "and optimizer state between steps, as the memory that their tensors lie in. `inside`: "
        "step_in_backward."
    )
    wheres = [each["where"] for each in log.records()]
    path = args.out / f"{name}.md"
    write_report(path, "Memory of training in codes", text, table, "Not read yet.", wheres)


if __name__ == "__main__":
    main()
