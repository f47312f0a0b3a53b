"""What one step along the gradient changes in networks of 2 and 16 layers: recipes/curvature.py.

    python benchmarks/curvature_record.py
    python benchmarks/curvature_record.py --out mine --depths 32 --data ylecun/mnist --side 14

It takes the recipe's flags. Finished networks are not repeated. Table and pictures are written at
the end, from the networks that the flags name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from run_log import MONTH, RESULTS, RunLog, write_report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes"))

import curvature
from curvature_report import draw, markdown
from digit_images import read_images

_SETTING = """Perceptrons of {width} inputs and as many units in each hidden layer, without biases,
on {data} ({side} x {side} pixels); plain, and residual: a skip around each hidden layer. L counts
weight matrices, the one that reads out among them. Each network trains with Fromage at lr {lr},
falling linearly to 0, on batches of {batch}; then a copy steps along the negative gradient of the
loss on {pictures} pictures, with the relative step η = |ΔW| / |W| in every layer. Medians over
{seeds} seeds; of gradients the median over layers and seeds (least to most).

"Their Jacobians" is the gradient's change with the loss's slope at the outputs held at its first
value. "The output's bound" is what operator norms allow (docs/curvature.md)."""


def main() -> None:
    """Measure what is missing, write table and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=RESULTS / f"curvature_cpu_{MONTH}",
        help="result files, without suffix")  # fmt: skip
    own, flags = parser.parse_known_args()
    args = curvature.read_flags(flags)
    torch.set_num_threads(1)
    images = read_images(args.data, args.side)
    log = RunLog(own.out.with_suffix(".jsonl"))
    records = curvature.measure(args, images, log, print)
    names = []
    for steps in sorted(set(args.steps)):
        names.append(f"{own.out.name}_{steps}_steps.png")
        draw(own.out.with_name(names[-1]), records, steps)
    setting = _SETTING.format(
        width=images.pixels.shape[1],
        data=args.data,
        side=args.side,
        lr=args.lr,
        batch=args.batch,
        pictures=records[0]["key"]["pictures"],
        seeds=len(set(args.seeds)),
    )
    title = "What one step along the gradient changes"
    pictures = "\n\n".join(f"![{title}]({name})" for name in reversed(names))
    wheres = [record["where"] for record in records]
    write_report(
        own.out.with_suffix(".md"),
        title,
        f"{setting}\n\n{pictures}",
        markdown(records),
        "Not read yet.",
        wheres,
    )


if __name__ == "__main__":
    main()
