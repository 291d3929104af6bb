"""Splitting prompts at trained spans, so that no token crosses the boundary of a span."""

from __future__ import annotations

from itertools import pairwise

from fim_core.tokenization.encoder import Piece, TextEncoder


def cut_at_spans(
    encoder: TextEncoder, prompt: str, control_spans: list[int] | None, trained_spans: list[int]
) -> tuple[list[Piece], list[int]]:
    """Cut a prompt into pieces, and return the pieces and the indices of those within trained spans.

    Args:
        encoder: cuts each segment into pieces.
        prompt: its text, control tokens written out.
        control_spans: as `TextEncoder.pieces` takes them.
        trained_spans: `[start, end, start, end, …]` in characters.
    """
    pieces: list[Piece] = []
    chosen: list[int] = []
    cuts = [0, *trained_spans, len(prompt)]
    for number, (start, end) in enumerate(pairwise(cuts)):
        spans = None if control_spans is None else _inside(control_spans, start, end)
        before = len(pieces)
        pieces += encoder.pieces(prompt[start:end], spans)
        if number % 2:
            chosen += range(before, len(pieces))
    return pieces, chosen


def _inside(control_spans: list[int], start: int, end: int) -> list[int]:
    """Control spans between two positions, relative to the first."""
    pairs = zip(control_spans[::2], control_spans[1::2], strict=True)
    return [place - start for pair in pairs if start <= pair[0] and pair[1] <= end for place in pair]
