"""Tables of a run of `make test-gpu`, in Markdown as in benchmarks/README.md."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers


class Report:
    """Tables by title. The file is written after each row, so that it survives a crash."""

    def __init__(self, path: Path) -> None:
        """Write a file with the heading only."""
        self._path = path
        self._tables: dict[str, list[Sequence[str]]] = {}
        self._write()

    def add(self, title: str, **cells: str) -> None:
        """Add a row to the table of that title; the first row decides the columns."""
        table = self._tables.setdefault(title, [list(cells)])
        if list(cells) != list(table[0]):
            raise ValueError(f"{title} has the columns {table[0]}, not {list(cells)}")
        table.append(list(cells.values()))
        self._write()

    def text(self) -> str:
        """The whole report."""
        parts = [f"## {machine()}"]
        for title, (header, *rows) in self._tables.items():
            names = [name.replace("_", " ") for name in header]
            lines = [names, ["---", *["---:"] * (len(header) - 1)], *rows]
            parts.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        return "\n\n".join(parts) + "\n"

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(self.text(), encoding="utf-8")


def machine() -> str:
    """Cards and versions, in one line."""
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or [
        "CPU, a rehearsal that says nothing of GPUs"
    ]
    names = ", ".join(f"{cards.count(name)} x {name}" for name in dict.fromkeys(cards))
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"{names}: torch {torch.__version__}{cuda}, transformers {transformers.__version__}, Python {platform.python_version()}"
