"""How much memory and time does a comparison of two checkpoints of a 7B model take?

Writes two sharded bfloat16 checkpoints with the shapes of a Llama 7B (27 GB of disk for both; fewer
layers by --layers), compares them by `hf-relopt distance` in a process of its own, and watches that
process: memory of its own (RssAnon) and all that it holds, with the mapped pages of the files that
the system may take back at any time (VmHWM).

    python benchmarks/distance_memory.py --folder /somewhere/with/30GB

The checkpoints are removed at the end unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from process_memory import status
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from safetensors.torch import save_file

HIDDEN, FEED, VOCAB = 4096, 11008, 32000
MIB = 2**20


def shards(layers: int) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of each file: one for the embeddings and the head, one per layer."""
    found: list[dict[str, tuple[int, ...]]] = [
        {
            "model.embed_tokens.weight": (VOCAB, HIDDEN),
            "model.norm.weight": (HIDDEN,),
            "lm_head.weight": (VOCAB, HIDDEN),
        }
    ]
    for number in range(layers):
        name = f"model.layers.{number}"
        attention = {f"{name}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        feed = {f"{name}.mlp.{part}_proj.weight": (FEED, HIDDEN) for part in ("gate", "up")}
        norms = {
            f"{name}.{part}_layernorm.weight": (HIDDEN,) for part in ("input", "post_attention")
        }
        down = {f"{name}.mlp.down_proj.weight": (HIDDEN, FEED)}
        found.append({**attention, **feed, **down, **norms})
    return found


def write(folder: Path, layers: int, seed: int) -> int:
    """Write a checkpoint of random numbers; returns its parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    # One draw for all tensors: what they hold does not matter to memory and time.
    drawn = (0.02 * torch.randn(VOCAB * HIDDEN, generator=generator)).bfloat16()
    weight_map: dict[str, str] = {}
    count = 0
    parts = shards(layers)
    for number, shapes in enumerate(parts):
        file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        entries = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        weight_map.update(dict.fromkeys(entries, file))
        count += sum(entries.values())
        size = (folder / file).stat().st_size if (folder / file).exists() else 0
        if size > 2 * sum(entries.values()):
            continue  # of a run that was killed
        tensors = {}
        for name, shape in shapes.items():
            tensors[name] = drawn[: entries[name]].clone().view(shape)
        save_file(tensors, folder / file)
        print(f"wrote {folder.name}/{file}", flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return count


def compare(one: Path, other: Path, norm: str) -> dict[str, Any]:
    """Run the command and watch it."""
    command = [sys.executable, "-m", "hf_relopt", "distance", str(one), str(other)]
    own = held = 0
    with TemporaryFile() as out:
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--json", "--norm", norm], stdout=out)
        while process.poll() is None:
            seen = status(process.pid)
            own, held = max(own, seen.get("RssAnon", 0)), max(held, seen.get("VmHWM", 0))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        out.seek(0)
        found = json.load(out)
    sizes = {"own_mib": own / MIB, "held_mib": held / MIB}
    return {"seconds": seconds, **sizes, "log_drt": found["log_drt"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where 27 GB can be written")
    parser.add_argument("--layers", type=int, default=32, help="of the model (32: 6.7B)")
    parser.add_argument("--norm", default="frobenius", help="frobenius, spectral or both")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    name = f"distance_memory_cpu_{MONTH}"
    log = RunLog(args.out / f"{name}.jsonl")
    key = {"layers": args.layers, "norm": args.norm}
    if log.finished(key) is None:
        places = [args.folder / side for side in ("before", "after")]
        count = 0
        for seed, place in enumerate(places):
            count = write(place, args.layers, seed)
        found = compare(*places, args.norm)
        log.append(key, {"parameters": count, **found})
        if not args.keep:
            for place in places:
                shutil.rmtree(place)
    rows = [
        (
            f"{each['parameters'] / 1e9:.2f} billion", each["key"]["norm"],
            f"{each['own_mib']:,.0f}", f"{each['held_mib']:,.0f}", f"{each['seconds']:,.0f}",
            f"{2 * 2 * each['parameters'] / each['seconds'] / 1e9:.2f}",
        )
        for each in log.records()
    ]  # fmt: skip
    head = ["parameters", "norm", "own memory, MiB", "with mapped files, MiB", "seconds", "GB/s"]
    table = markdown_table(head, rows)
    print(table)
    setting = (
        "Two sharded bfloat16 checkpoints with the shapes of Llama 7B, random numbers, compared by "
        "`hf-relopt distance`. Own memory is what the process has allocated; the mapped pages of "
        "the files are the system's to take back. GB/s counts both checkpoints once."
    )
    wheres = [each["where"] for each in log.records()]
    path = args.out / f"{name}.md"
    write_report(path, "Memory of a comparison", setting, table, "Not read yet.", wheres)


if __name__ == "__main__":
    main()
