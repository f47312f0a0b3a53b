"""The last lines of a run: what came out, where it lies, what to try next."""

from __future__ import annotations

from progress_lines import duration
from run_folder import RunFolder

FILES = (
    ("model", "model.safetensors"),
    ("adapter", "adapter_model.safetensors"),
    ("card", "README.md"),
    ("loss curve", "loss_curve.png"),
    ("history", "trainer_state.json"),
)


def print_summary(folder: RunFolder, metric: str, *, again: bool) -> None:
    """Print the summary of a finished run from its record.

    Args:
        folder: of a finished run.
        metric: the evaluation figure to show, as in "eval_perplexity".
        again: whether this start found the run finished and did nothing.
    """
    record = folder.record
    if again:
        print(f"\nThe run in {folder.path} is finished; nothing was changed.")
    name = metric.removeprefix("eval_").replace("_", " ")
    ends = [record[when][metric] for when in ("before", "after") if metric in record[when]]
    print(
        f"\nDone: {record['steps']:,} steps in {duration(record['seconds'])}, "
        f"validation {name} {' -> '.join(map(_figure, ends))}\n"
    )
    for what, file in FILES:
        if (folder.path / file).exists():
            print(f"  {what:<11} {folder.path / file}")
    if record.get("sample"):
        print("\nA sample:\n")
        lines = [line for line in record["sample"].splitlines() if line.strip()]
        print("\n".join(f"  | {line}" for line in lines[:12]))
    print("\nTry next:")
    for hint in [
        *record.get("hints", []),
        ("start over", "the same command with --overwrite_output_dir"),
    ]:
        print(f"  {hint[0]:<22} {hint[1]}")


def _figure(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4f}"
