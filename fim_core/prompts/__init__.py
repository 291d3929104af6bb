"""Rendering raw rows to prompts, keeping user text out of control tokens, and splitting rows into train and eval."""

from fim_core.prompts.builder import Prompt, PromptBuilder, template_in_use
from fim_core.prompts.train_tokenizer import train_tokenizer_on
from fim_core.prompts.write import PROMPTS_SCHEMA, PromptCounts, write_fim_prompts

__all__ = [
    "PROMPTS_SCHEMA",
    "Prompt",
    "PromptBuilder",
    "PromptCounts",
    "template_in_use",
    "train_tokenizer_on",
    "write_fim_prompts",
]
