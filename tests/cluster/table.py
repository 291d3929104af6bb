"""The table of launchers and of what they were put through."""

from __future__ import annotations

from trainings import BACKENDS

ROWS = {
    "trains": "trains bit-equal to two local ranks",
    "cancel": "cancel (Ctrl-C)",
    "dagster": "cancel in Dagster",
    "sigkill": "SIGKILL of `fim train`",
    "rank": "one rank killed",
    "host": "one host gone",
    "unreachable": "unreachable host",
    "two": "two runs at once, one cancelled",
    "resume": "resume on other hosts",
}


class Table:
    """Seconds by scenario and launcher. A cell without a figure was not run, or has failed."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}

    def add(self, row: str, backend: str, seconds: float) -> None:
        """Fill in a cell."""
        assert row in ROWS
        self._seconds[row, backend] = seconds

    @property
    def text(self) -> str:
        """The table in Markdown."""
        lines = [f"| | {' | '.join(BACKENDS)} |", "| --- |" + " ---: |" * len(BACKENDS)]
        for row, title in ROWS.items():
            cells = (self._seconds.get((row, backend)) for backend in BACKENDS)
            lines.append(f"| {title} | {' | '.join('-' if cell is None else f'{cell:.1f} s' for cell in cells)} |")
        return "\n".join(lines) + "\n"
