"""Draw the picture of the README: validation loss against steps of the preset and its rivals.

    python benchmarks/readme_picture.py

It reads finished runs of quality.py and trains nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from quality_table import Entry, best, entries, families

matplotlib.use("Agg")  # before pyplot, which would look for a window
from matplotlib import pyplot

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "quality_shakespeare_cpu_202611.jsonl"
PICTURE = HERE.parent / "docs" / "images" / "loss.png"
# From the worst to the best, so that colours and lines go together on every page.
SHOWN = {
    "fromage": ("Fromage, the paper's rule", "#8a8f98"),
    "adamw": ("AdamW", "#2a6fbb"),
    "muon": ("Muon (AdamW for embeddings and vectors)", "#3a9a5b"),
    "fromage_spectral": ("fromage_spectral, default learning rate", "#d1495b"),
}
INK = "#22262e"


def chosen(results: Path) -> dict[str, Entry]:
    """The preset as it is without options; of the others what was best over all its seeds."""
    lines = results.read_text("utf-8").splitlines()
    found = families(entries([json.loads(line) for line in lines]))
    by_name = {name: best(found[name]) for name in SHOWN}
    plain = [e for e in found["fromage_spectral"] if str(e.spec) == "fromage_spectral"]
    # Of Muon's rates one is best on the seed that all have, another over three: show the latter.
    for name in ("muon", "adamw", "fromage"):
        most = max(len(e.runs) for e in found[name])
        several = [e for e in found[name] if len(e.runs) == most]
        by_name[name] = min(several, key=lambda e: e.result())
    return {**by_name, "fromage_spectral": plain[0]}


def draw(shown: dict[str, Entry], path: Path) -> None:
    """Write the picture: one line per optimizer, its final loss in the legend."""
    figure, axes = pyplot.subplots(figsize=(8, 4.2), dpi=160, layout="constrained")
    for name, (words, colour) in SHOWN.items():
        entry = shown[name]
        steps, losses = zip(*entry.glances(), strict=True)
        wide = 2.6 if name == "fromage_spectral" else 1.6
        label = f"{words}: {entry.result():.3f}"
        axes.plot(steps, losses, color=colour, linewidth=wide, label=label)
    seeds = min(len(entry.runs) for entry in shown.values())
    axes.set_title(
        f"GPT-2 (4 layers, width 128) on characters of Tiny Shakespeare, mean of {seeds} seeds",
        loc="left",
        color=INK,
        fontsize=10.5,
    )
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("validation loss, nats per character", color=INK)
    axes.set_ylim(1.5, 2.8)
    axes.legend(frameon=False, reverse=True)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Read the results, write the picture, say what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="default: %(default)s")
    args = parser.parse_args()
    shown = chosen(args.results)
    draw(shown, args.picture)
    for name, entry in shown.items():
        print(f"{name}: {entry.spec}, {entry.result():.3f} over {len(entry.runs)} seeds")
    print(args.picture)


if __name__ == "__main__":
    main()
