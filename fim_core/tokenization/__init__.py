"""Tokenization of prompts and responses."""

from fim_core.tokenization.load import load_rows
from fim_core.tokenization.write import TokenizedCounts, tokenize_prompts

__all__ = ["TokenizedCounts", "load_rows", "tokenize_prompts"]
