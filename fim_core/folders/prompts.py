"""Folder of fim_prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PromptsFolder:
    """Files of fim_prompts. The recipe of the prompts is in the same folder (see `fim_core.prompt_format.recipe`)."""

    path: Path

    @property
    def rows(self) -> Path:
        """The prompts, with the columns of `PROMPTS_SCHEMA`."""
        return self.path / "prompts.parquet"

    @property
    def rejected(self) -> Path:
        """Raw rows that are not used, with the reason."""
        return self.path / "rejected.parquet"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, with the FIM tokens added."""
        return self.path / "tokenizer"
