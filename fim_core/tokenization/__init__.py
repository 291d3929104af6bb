"""Prompts become token ids and labels: exact, fast, and streamed."""

from fim_core.tokenization.write import TokenizedCounts, load_rows, tokenize_prompts

__all__ = ["TokenizedCounts", "load_rows", "tokenize_prompts"]
