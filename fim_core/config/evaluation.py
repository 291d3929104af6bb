"""`evaluation` and `gate`: what is measured on held-out rows, and what a new champion must show."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fim_core.config.base import DialectName, Section, closest


class EvaluationConfig(Section):
    """`evaluation`: generation and metrics on held-out rows."""

    max_rows: int | None = Field(500, ge=1, description="Held-out rows that completions are generated for; null: all.")
    max_new_tokens: int = Field(96, ge=1, description="Tokens after which a completion counts as runaway.")
    batch_size: int = Field(32, ge=1, description="Rows decoded together.")
    dialect: DialectName = Field("snowflake", description="sqlglot dialect for parsing, binding and SQL tokens.")
    bootstrap_samples: int = Field(1000, ge=100, description="Resamples behind each confidence interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    examples: int = Field(20, ge=0, description="Examples to read in the report.")
    backend: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="Engine that generates; vllm needs that package and a GPU, and no GPU has run it yet.",
    )


class GateRule(Section):
    """One condition that a candidate must meet to become champion."""

    metric: str = Field(description="Metric of the report, for example exact_match_sql.")
    rule: Literal["not_worse", "better", "at_least", "at_most", "beats_baselines", "finite"] = Field(
        description="not_worse, better: against the champion, beyond the confidence interval of the paired "
        "difference, on the rows that it can read; at_least, at_most: against `value`; beats_baselines: lower bound "
        "above every baseline's upper bound."
    )
    value: float | None = Field(
        None, description="Bound of at_least and at_most; for not_worse the slack that is allowed."
    )

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        from fim_core.evaluation.metrics.registry import BY_NAME

        if value not in BY_NAME:
            raise ValueError(f"no such metric: {value}{closest(value, list(BY_NAME))} (there are {', '.join(BY_NAME)})")
        return value

    @model_validator(mode="after")
    def _bound_has_a_value(self) -> GateRule:
        if self.rule in ("at_least", "at_most") and self.value is None:
            raise ValueError(f"{self.rule} needs `value`")
        return self


DEFAULT_GATE = [
    GateRule(metric="loss", rule="finite"),
    GateRule(metric="exact_match_sql", rule="beats_baselines"),
    GateRule(metric="exact_match_sql", rule="not_worse"),
    GateRule(metric="binds", rule="not_worse"),
    GateRule(metric="abstention_precision", rule="not_worse"),
    # With slack, since a model that leaves more empty than it should gains here for nothing.
    GateRule(metric="abstention_recall", rule="not_worse", value=0.1),
]


class GateConfig(Section):
    """`gate`: every rule must hold before a candidate replaces the champion."""

    rules: list[GateRule] = Field(DEFAULT_GATE, description="Conditions, all of which must hold.")
