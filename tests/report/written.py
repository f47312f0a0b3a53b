"""Files of runs, written as docs/telemetry.md says that they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

START = 1_790_000_000.0


def gpt2_layers(blocks: int = 3, width: int = 96) -> list[dict[str, Any]]:
    """The layers of a GPT-2 in network order."""

    def layer(name: str, role: str, *shape: int) -> dict[str, Any]:
        follows = "fromage, spectral" if role == "matrix" else "fromage, momentum, by row"
        return {"name": name, "role": role, "shape": list(shape), "follows": follows}

    layers = [layer("transformer.wte.weight", "embedding", 1000, width),
              layer("transformer.wpe.weight", "embedding", 128, width)]  # fmt: skip
    for block in range(blocks):
        at = f"transformer.h.{block}"
        attention = ("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width)
        mlp = ("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width)
        for name, *shape in (*attention, *mlp):
            layers.append(layer(f"{at}.{name}.weight", "matrix", *shape))
        layers.append(layer(f"{at}.ln_1.weight", "vector", width))
    return [*layers, layer("transformer.ln_f.weight", "vector", width)]


def numbered_layers(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"model.layers.{n // 7}.part_{n % 7}.weight", "role": "matrix",
         "shape": [8, 8], "follows": "fromage"}
        for n in range(count)
    ]  # fmt: skip


def run_line(layers: list[dict[str, Any]], step: int = 0, **given: Any) -> dict[str, Any]:
    line = {"kind": "run", "format": 1, "step": step, "time": START + step, "layers": layers}
    return {**line, "optimizer": "fromage_spectral", **given}


def step_line(step: int, layers: int, of: int = 60, **given: Any) -> dict[str, Any]:
    """A plausible step: the updates fall with the learning rate and differ by layer."""
    rng = np.random.default_rng(step)
    lr = 0.02 * (1 - (step - 1) / max(of, step))
    share = np.linspace(0.3, 1, layers) * np.exp(0.1 * rng.standard_normal(layers))
    line = {
        "kind": "step", "step": step, "time": START + 0.25 * step, "lr": lr,
        "loss": 3 + 4 * math.exp(-3 * step / of),
        "relative_update": [float(f"{value:.6g}") for value in lr * share],
        "norm": (np.linspace(5, 40, layers) * (1 + 0.3 * step / of)).round(6).tolist(),
        "at_bound": [round(float(value), 4) for value in 0.2 * rng.random(layers)],
        "changed": [round(float(value), 4) for value in 0.9 + 0.1 * rng.random(layers)],
    }  # fmt: skip
    metrics = {"relative_update": float(lr * 0.7), "at_bound": 0.1 * step / of,
               "changed_entries": 0.99, "skipped_tensors": 0.0,
               "relative_update/matrix": lr, "relative_update/embedding": lr / 2,
               "relative_update/vector": lr / 3, "step_drt": float(1.2 * lr),
               "at_bound/matrix": 0.02, "at_bound/embedding": 0.1 * step / of}  # fmt: skip
    return {**line, "metrics": metrics, **given}


def warning_line(step: int, text: str) -> dict[str, Any]:
    return {"kind": "warning", "step": step, "text": text}


def write_telemetry(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """Write lines as the callback does: compact, NaN as null, each ended."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "telemetry.jsonl"
    path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return path


def telemetry_of(steps: int, layers: list[dict[str, Any]], every: int = 1) -> list[dict[str, Any]]:
    ends = range(every, steps + 1, every)
    return [run_line(layers), *(step_line(step, len(layers), steps) for step in ends)]


def record(**given: Any) -> dict[str, Any]:
    """relopt_run.json of a finished run."""
    return {
        "format": 1,
        "model": {"class": "GPT2LMHeadModel", "name_or_path": "gpt2", "parameters": 441792,
                  "trainable": 441792, "dtype": "float32"},
        "optimizer": {
            "name": "fromage_spectral",
            "words": ["fromage along an orthogonalized momentum"],
            "groups": [
                {"role": "embedding", "follows": "fromage, momentum, by row", "lr": 0.02,
                 "tensors": 2, "parameters": 108288},
                {"role": "matrix", "follows": "fromage, spectral", "lr": 0.02, "tensors": 12,
                 "parameters": 331776},
                {"role": "vector", "follows": "fromage, entry by entry", "lr": 0.02, "tensors": 26,
                 "parameters": 1728},
            ],
            "options": {"momentum": 0.95, "p_bound": 1.0},
        },
        "training": {"peak_lr": 0.02, "schedule": "linear", "warmup_steps": 0, "max_steps": 60,
                     "steps": 60, "epochs": 0.64, "per_device_batch_size": 16,
                     "gradient_accumulation_steps": 1, "sequences_per_step": 16,
                     "precision": "float32", "seed": 42, "data_seed": None},
        "launch": {"mode": "single process", "processes": 1, "backend": None},
        "hardware": {"device": "cpu", "count": 1, "cpu": "Xeon", "memory_gb": 8.0},
        "versions": {"hf_relopt": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"},
        "git": {"commit": "e3a9fef", "dirty": False},
        "command": "python train.py --optim fromage_spectral --output_dir out",
        "started": "2026-11-28T21:00:00+00:00",
        "seconds": 15.0,
        "finished": True,
        "base_model": None,
        **given,
    }  # fmt: skip


def trainer_state(entries: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    return {"global_step": max((entry["step"] for entry in entries), default=0),
            "max_steps": 60, "log_history": entries, **given}  # fmt: skip


def write_json(path: Path, content: Any) -> Path:
    """As the Trainer writes: NaN stands as NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
