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
    rule: Literal[
        "finite", "better_than_base", "better_than_constants", "not_worse", "better", "at_least", "at_most"
    ] = Field(
        description="better_than_base: than the model before training; better_than_constants: than always completing "
        "nothing, and than always the most frequent completion of the training rows; better, not_worse: than the "
        "champion, on the rows that it can read. All of these by the paired difference on the same rows, beyond its "
        "confidence interval. at_least, at_most: against `value`. finite: it is a number."
    )
    value: float | None = Field(
        None, description="Bound of at_least and at_most; for not_worse the slack that is allowed."
    )

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        from fim_core.metrics.registry import METRICS

        if value not in METRICS:
            raise ValueError(f"no such metric: {value}{closest(value, list(METRICS))} (there are {', '.join(METRICS)})")
        return value

    @model_validator(mode="after")
    def _bound_has_a_value(self) -> GateRule:
        if self.rule in ("at_least", "at_most") and self.value is None:
            raise ValueError(f"{self.rule} needs `value`")
        return self


DEFAULT_GATE = [
    GateRule(metric="loss", rule="finite"),
    GateRule(metric="exact_match_sql", rule="better_than_base"),
    # A model that has only learnt how completions look gains over a base that does not know the format, but not here.
    GateRule(metric="exact_match_sql", rule="better_than_constants"),
    # Nor does it know the accepted texts better than the base does. Without their end token, which a base need not know.
    GateRule(metric="loss_text", rule="better_than_base"),
    GateRule(metric="exact_match_sql", rule="not_worse"),
    GateRule(metric="binds", rule="not_worse"),
    GateRule(metric="abstention_precision", rule="not_worse"),
    # With slack, since a model that leaves more empty than it should gains here for nothing.
    GateRule(metric="abstention_recall", rule="not_worse", value=0.1),
]


class GateConfig(Section):
    """`gate`: every rule must hold before a candidate replaces the champion."""

    rules: list[GateRule] = Field(DEFAULT_GATE, description="Conditions, all of which must hold.")
