"""Cases of the fine-tuning benchmark: a reference experiment, and the changes of each case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fim_core.config import Experiment

NATIVE = """\
{{/* Native FIM without context: the prompt that code models were pretrained on. */}}
{{define "assistant"}}
<|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>
{{end}}
"""

Rows = Literal["half", "all", "double", "shuffled"]


@dataclass(frozen=True)
class Case:
    """One experiment.

    Attributes:
        shows: purpose of the case.
        changes: options that differ from the first case, by dotted key; None removes the option.
        rows: training rows: half of them, all, twice as many, or all with their completions shuffled.
        refuse: whether the gate must refuse its model.
        by_default: whether it runs if no cases are named.
    """

    shows: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    rows: Rows = "all"
    refuse: bool = False
    by_default: bool = True


FULL = {"model.peft_config": None}
END_OF_TURN = "the end of a turn"
"""Placeholder for the end-of-turn token of the model's chat markup."""

CASES = {
    "lora": Case("LoRA with the defaults, native FIM without context"),
    "full": Case("all weights, with the defaults", FULL),
    "end-of-turn": Case(
        "the chat's end token instead of the native one", {"model.end_token": END_OF_TURN}, by_default=False
    ),
    "context": Case(
        "the template `plain`: native FIM after the row's context", {"data.template": "plain"}, by_default=False
    ),
    "chat": Case(
        "the template `chat`: instructions and context in chat markup", {"data.template": "chat"}, by_default=False
    ),
    "spm": Case("suffix before prefix", {"data.fim_order": "spm"}, by_default=False),
    "rows-half": Case("half as many rows", rows="half", by_default=False),
    "rows-double": Case("twice as many rows", rows="double", by_default=False),
    "epochs-2": Case("two passes over the rows", {"epochs": 2}, by_default=False),
    "lora-1e-4": Case("half the learning rate", {"optimizer.lr": 1e-4}, by_default=False),
    "lora-5e-4": Case("2.5 times the learning rate", {"optimizer.lr": 5e-4}, by_default=False),
    "full-1e-5": Case("all weights at half the learning rate", {**FULL, "optimizer.lr": 1e-5}, by_default=False),
    "full-5e-5": Case("all weights at 2.5 times the learning rate", {**FULL, "optimizer.lr": 5e-5}, by_default=False),
    "row-loss": Case(
        "each row counts once in the loss, whatever its length", {"data.sample_weighted_loss": True}, by_default=False
    ),
    "shuffled": Case("completions of other rows", rows="shuffled", refuse=True),
    "wrecked": Case("a learning rate that ruins the base", {**FULL, "optimizer.lr": 3e-2, "max_steps": 4}, refuse=True),
    "untrained": Case("adapters that have learned nothing", {"optimizer.lr": 1e-12, "max_steps": 1}, refuse=True),
}


def experiment_of(
    name: str, *, model: str, train: Path, held_out: Path, template: Path, storage: Path, end_of_turn: str | None
) -> Experiment:
    """The experiment of a case.

    Args:
        name: of the case.
        model: folder or hub id.
        train, held_out: CSV files.
        template: file that holds `NATIVE`.
        storage: folder of artifacts.
        end_of_turn: the model's token for it.

    Raises:
        FimError: an option cannot be used.
    """
    content: dict[str, Any] = {
        "name": f"finetune-{name}",
        "storage": str(storage),
        "model": {"name_or_path": model, "peft_config": {}},
        "data": {
            "sources": [str(train)],
            "eval_sources": [str(held_out)],
            "template": str(template),
            "max_length": 2048,
        },
        "evaluation": {"max_rows": None, "max_new_tokens": 48},
        # As an error this check would stop a model whose loss has not fallen before it reaches the gate.
        "checks": {"loss_fell": {"severity": "warn"}},
    }
    for key, value in CASES[name].changes.items():
        *sections, option = key.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
        section[option] = end_of_turn if value is END_OF_TURN else value
    model_section = content["model"]
    content["model"] = {option: value for option, value in model_section.items() if value is not None}
    return Experiment.model_validate(content)
