"""Benchmark of data preparation: speed and memory, against a row-by-row baseline and the bare tokenizer.

    python -m benchmarks.data [--sizes N …] [--export FILE] [--tokenizer FOLDER] [--baseline-rows N] [--num-proc N]

Each measurement runs in a separate process, so that peak memory is measured separately. The baseline is a straightforward
script: pandas, `apply_chat_template` for each row, `datasets.map` with the tokenizer, `save_to_disk`. The bare tokenizer
only encodes the finished prompts, each as one text. All of them use one process and one thread; --num-proc changes that
for ours.

Without --export the rows are those of `fim demo-data`; without --tokenizer one is trained on the first of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20
TRAINING_ROWS = 6000
MAX_LENGTH = 8192


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--export", type=Path, help="measure on this export instead of generated ones")
    parser.add_argument("--tokenizer", help="folder or hub id")
    parser.add_argument("--baseline-rows", type=int, default=20_000, help="largest export that the baseline runs on")
    parser.add_argument("--num-proc", type=int, default=1, help="worker processes for our code")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options) | {"peak_mib": _peak_mib()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        _compare(options, Path(folder))


def _compare(options: argparse.Namespace, folder: Path) -> None:
    exports = {0: options.export} if options.export else {size: folder / f"{size}.csv" for size in options.sizes}
    if not options.export:
        _generate(exports, folder)
    options.tokenizer = options.tokenizer or _trained_tokenizer(next(iter(exports.values())), folder)
    print("| rows | what | rows/s | raw s | rendering s | tokenization s | rows/CPU s | peak MiB | notes |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    peaks: dict[int, float] = {}
    for size, export in exports.items():
        work = folder / f"work-{size}"
        ours = _child("ours", export, work, options)
        rows = int(ours["rows"])
        peaks[rows] = ours["peak_mib"]
        _print_row(rows, f"ours, {options.num_proc} process(es)", ours)
        if rows <= options.baseline_rows:
            baseline = _child("baseline", export, work, options)
            _print_row(rows, "row by row", baseline)
            _print_row(rows, "bare tokenizer", _child("bare", export, work, options))
            wall, cpu = (_seconds(baseline, clock) / _seconds(ours, clock) for clock in ("", "_cpu"))
            print(
                f"\nRendering plus tokenization of {rows:,} rows: {wall:.1f} times the rows/s of row by row, ", end=""
            )
            print(f"{cpu:.1f} times the rows per second of CPU.\n")
    if len(peaks) > 1:
        *_, middle, largest = sorted(peaks)
        print(f"\nPeak memory, {largest:,} rows against {middle:,}: {peaks[largest] / peaks[middle]:.2f} times.")


def _generate(exports: dict[int, Path], folder: Path) -> None:
    from fim_core.demo.export import write_export

    for size, path in exports.items():
        started = time.perf_counter()
        write_export(path, rows=size, seed=7)
        print(f"{size:,} rows generated in {time.perf_counter() - started:.0f} s, {path.stat().st_size / MIB:.0f} MiB")


def _trained_tokenizer(export: Path, folder: Path) -> str:
    from itertools import islice

    from fim_core.demo.tokenizer import train_tokenizer

    with export.open(encoding="utf-8") as lines:
        train_tokenizer(list(islice(lines, TRAINING_ROWS)), 4096).save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def _child(step: str, export: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.data", "--step", step, "--export", str(export), "--work", str(work)]
    command += ["--tokenizer", options.tokenizer, "--num-proc", str(options.num_proc)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(work / "cache")}
    environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _print_row(rows: int, what: str, result: dict[str, Any]) -> None:
    times = [f"{result[key]:.2f}" if key in result else "" for key in ("raw", "rendering", "tokenization")]
    speed = f"{result['rows'] / _seconds(result):,.0f}"
    per_cpu = f"{result['rows'] / _seconds(result, '_cpu'):,.0f}"
    cells = [f"{rows:,}", what, speed, *times, per_cpu, f"{result['peak_mib']:.0f}", result["notes"]]
    print(f"| {' | '.join(cells)} |", flush=True)


def _seconds(result: dict[str, Any], clock: str = "") -> float:
    """Seconds of rendering plus tokenization; CPU seconds with `clock="_cpu"`, which a busy machine affects less."""
    return float(result.get(f"rendering{clock}", 0) + result[f"tokenization{clock}"])


def _cpu_seconds() -> float:
    """CPU time of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak_mib() -> float:
    """Peak memory of this process, or of its largest worker if that took more."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def _ours(options: argparse.Namespace) -> dict[str, Any]:
    from fim_core.config import DataConfig, ModelConfig
    from fim_core.prompt_format.tokens import load_tokenizer
    from fim_core.prompts import write_fim_prompts
    from fim_core.records.sources import write_raw_completions
    from fim_core.tokenization import tokenize_prompts

    source = {"type": "fim_completions", "name_or_path": str(options.export)}
    data = DataConfig.model_validate({"sources": [source], "num_proc": options.num_proc, "max_length": MAX_LENGTH})
    tokenizer = load_tokenizer(options.tokenizer)
    options.work.mkdir()
    raw, prompts = options.work / "raw.parquet", options.work / "prompts"
    result: dict[str, Any] = {}
    with _Timer(result, "raw"):
        write_raw_completions(data, raw)
    with _Timer(result, "rendering"):
        model = ModelConfig(name_or_path=options.tokenizer)
        rendered = write_fim_prompts(raw, prompts, data=data, model=model, tokenizer=tokenizer, seed=0)
    with _Timer(result, "tokenization"):
        counts = tokenize_prompts(prompts, options.work / "tokens", data=data)
    per_row = counts.tokens / max(counts.rows_kept, 1)
    asked = counts.tokenizer_tokens / max(counts.tokens, 1)
    notes = f"{counts.notice}; {per_row:.0f} tokens a row; {asked:.1%} of them asked of the tokenizer"
    return result | {"rows": rendered.rows_in, "notes": notes}


def _baseline(options: argparse.Namespace) -> dict[str, Any]:
    import datasets
    import pandas

    from fim_core.prompt_format.template import FIELDS, Template, load_template
    from fim_core.prompt_format.tokens import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer)
    template: Template = load_template("chat")
    result: dict[str, Any] = {}
    with _Timer(result, "raw"):
        frame = pandas.read_csv(options.export, dtype=str, keep_default_na=False)

    def prompt_of(text: str) -> str | None:
        try:
            items = [item["text"] for item in json.loads(text)]
            prefix, suffix = items[-1].split("<fillMe>")
            context = json.loads(items[0]) if items[0].startswith("{") else {}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None
        fields = dict.fromkeys(FIELDS, "") | {name.upper(): value for name, value in context.items()}
        turns = [
            {"role": role, "content": "".join(piece.text for piece in template.render(role, fields))}
            for role in ("system", "user")
        ]
        opening = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        return f"{opening}<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"

    with _Timer(result, "rendering"):
        frame["prompt"] = [prompt_of(row["INPUT"]) for _, row in frame.iterrows()]
        kept = frame[frame["prompt"].notna()]
        dataset = datasets.Dataset.from_pandas(kept[["prompt", "OUTPUT"]], preserve_index=False)

    def tokenize(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(row["OUTPUT"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    with _Timer(result, "tokenization"):
        tokenized = dataset.map(tokenize, remove_columns=dataset.column_names)
        tokenized.save_to_disk(str(options.work / "baseline"))
    return result | {"rows": len(frame), "notes": "pandas, apply_chat_template, datasets.map"}


def _bare(options: argparse.Namespace) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from fim_core.prompt_format.tokens import load_tokenizer

    encode = load_tokenizer(options.tokenizer).backend_tokenizer.encode_batch_fast
    table = pq.read_table(options.work / "prompts" / "prompts.parquet", columns=["prompt", "response"])
    prompts, responses = (table.column(name).to_pylist() for name in ("prompt", "response"))
    result: dict[str, Any] = {}
    with _Timer(result, "tokenization"):
        for start in range(0, len(prompts), 1000):
            encode(prompts[start : start + 1000], add_special_tokens=False)
            encode(responses[start : start + 1000], add_special_tokens=False)
    return result | {"rows": len(prompts), "notes": "finished prompts, encoded whole, nothing written"}


class _Timer:
    """Stores wall-clock and CPU seconds of its block in a dictionary."""

    def __init__(self, times: dict[str, Any], name: str) -> None:
        self._times, self._name = times, name

    def __enter__(self) -> None:
        self._started, self._cpu = time.perf_counter(), _cpu_seconds()

    def __exit__(self, *_: object) -> None:
        self._times[self._name] = time.perf_counter() - self._started
        self._times[f"{self._name}_cpu"] = _cpu_seconds() - self._cpu


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"ours": _ours, "baseline": _baseline, "bare": _bare}


if __name__ == "__main__":
    main()
