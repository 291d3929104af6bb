"""Figures and differences as text, the same wherever they are shown."""

from __future__ import annotations


def show_figure(value: float | None, unit: str) -> str:
    """Format a figure: shares in percent, others with three significant digits."""
    if value is None:
        return "not finite"
    return f"{value:.1%}" if unit == "share" else f"{value:.3g}"


def show_with_unit(value: float | None, unit: str) -> str:
    """Format a figure with its unit."""
    return show_figure(value, unit) + ("" if unit == "share" or value is None else f" {unit}")


def show_difference(value: float | None, unit: str, *, name_unit: bool = True) -> str:
    """Format a difference of two figures with its sign: of shares in percentage points."""
    if value is None:
        return "not finite"
    number, measure = (f"{100 * value:+.1f}", "points") if unit == "share" else (f"{value:+.3g}", unit)
    if value == 0:
        number = number.lstrip("+-")
    return f"{number} {measure}" if name_unit else number
