"""A distance in text: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from hf_relopt.distance.reading import kinds, sentences
from hf_relopt.distance.result import LAYER_FIELDS, LayerDistance

if TYPE_CHECKING:
    from hf_relopt.distance.result import Distance

# Column, field, how it is written.
COLUMNS = (
    ("layer", "name"),
    ("shape", "shape"),
    ("norm", "norm"),
    ("relative update", "relative_update"),
    ("cosine", "cosine"),
    ("signs changed", "sign_changes"),
    ("changed", "changed"),
)
SPECTRAL = (
    ("spectral update", "spectral_update"),
    ("stable rank", "stable_rank"),
    ("of update", "update_stable_rank"),
)


def summary(distance: Distance) -> list[tuple[str, str]]:
    """Totals, as pairs of words and value."""
    lines = [
        ("deep relative trust", trust(distance.drt, distance.log_drt)),
        ("with biases and norm weights", trust(distance.drt_all, distance.log_drt_all)),
    ]
    if distance.spectral_drt is not None and distance.log_spectral_drt is not None:
        value = trust(distance.spectral_drt, distance.log_spectral_drt)
        lines.append(("in operator norms", value))
    lines.append(("weight matrices (depth)", f"{distance.depth:,}"))
    if distance.largest_lr is not None:
        lines.append(("descent lemma holds below a relative step of", f"{distance.largest_lr:.4g}"))
    if (measured := distance.measured) is not None:
        lines.append(("measured change of the output", f"{measured.output_change:.4g}"))
        if measured.loss is not None:
            lines.append(("loss on the batch", " -> ".join(f"{x:.4g}" for x in measured.loss)))
        if changes := list((measured.gradient_change or {}).values()):
            middle = sorted(changes)[len(changes) // 2]
            lines.append(
                ("measured change of gradients", f"median {middle:.4g}, largest {max(changes):.4g}")
            )
    return lines


def trust(drt: float, log_drt: float) -> str:
    """Deep relative trust in words that stay short whatever its size."""
    return f"{drt:.4g}" if math.isfinite(drt) else f"e^{log_drt:,.0f}"


def rows(distance: Distance, top: int | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and cells of the layers, all in network order, or the ``top`` that moved most."""
    columns = COLUMNS + (SPECTRAL if distance.spectral_drt is not None else ())
    layers = distance.layers
    if top is not None:
        layers = tuple(sorted(layers, key=lambda each: -each.relative_update)[:top])
    head = tuple(words for words, _ in columns)
    cells = [tuple(_cell(layer, field) for _, field in columns) for layer in layers]
    changes = distance.measured.gradient_change if distance.measured is not None else None
    if changes is None:
        return head, cells
    more = [f"{changes[layer.name]:.4g}" if layer.name in changes else "" for layer in layers]
    return (*head, "gradient change"), [(*row, x) for row, x in zip(cells, more, strict=True)]


def _cell(layer: LayerDistance, field: str) -> str:
    value = getattr(layer, field)
    if value is None:
        return ""
    if field == "name":
        return str(value)
    if field == "shape":
        return "x".join(map(str, value)) or "1"
    if field in ("sign_changes", "changed"):
        return f"{100 * value:.3g} %"
    return f"{value:.6f}" if field == "cosine" else f"{value:.4g}"


def markdown(distance: Distance, top: int | None = None) -> str:
    """Totals, the table of layers, and what stands apart."""
    lines = [f"Distance from {distance.before} to {distance.after}", ""]
    if distance.partial:
        lines += [f"**Partial:** {distance.partial}", ""]
    lines += [f"- {words}: {value}" for words, value in summary(distance)]
    if said := sentences(distance):
        lines += ["", *said]
    lines += ["", *_table(*kind_rows(distance))]
    lines += ["", *_table(*rows(distance, top))]
    if top is not None and top < len(distance.layers):
        lines += ["", f"The {top} of {len(distance.layers)} that moved most."]
    if distance.apart:
        lines += ["", "Left out of the totals:", ""]
        lines += [f"- {words}: {names}" for words, names in apart_by_reason(distance)]
    return "\n".join(lines) + "\n"


def kind_rows(distance: Distance) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and cells of the layers by kind."""
    head = ("kind of layer", "layers", "median update", "largest", "share of log DRT")
    cells: list[tuple[str, ...]] = [
        (
            kind.name,
            f"{kind.count:,}",
            f"{kind.middle:.4g}",
            f"{kind.largest:.4g}",
            "" if kind.share is None else f"{100 * kind.share:.3g} %",
        )
        for kind in kinds(distance)
    ]
    return head, cells


def apart_by_reason(distance: Distance, shown: int = 4) -> list[tuple[str, str]]:
    """What the totals leave out, as pairs of reason and names; of many, the first ``shown``."""
    by_reason: dict[str, list[str]] = {}
    for entry in distance.apart:
        by_reason.setdefault(entry.reason, []).append(entry.name)
    found = []
    for reason, names in by_reason.items():
        few = len(names) <= shown + 1
        listed = ", ".join(names if few else names[:shown])
        more = "" if few else f" and {len(names) - shown} more"
        found.append((reason if few else f"{reason} ({len(names)} tensors)", listed + more))
    return found


def _table(head: tuple[str, ...], cells: list[tuple[str, ...]]) -> list[str]:
    ruled = [head, tuple("---" for _ in head), *cells]
    return [f"| {' | '.join(row)} |" for row in ruled]


def csv_text(distance: Distance) -> str:
    """One line per layer."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(LAYER_FIELDS)
    for layer in distance.layers:
        values = {name: getattr(layer, name) for name in LAYER_FIELDS}
        values["shape"] = "x".join(map(str, layer.shape))
        writer.writerow(values.values())
    return out.getvalue()
