"""Sections `evaluation`, `gate` and `serving`: evaluation on held-out rows, the rules for promotion, and what is served."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from fim_core.config.base import DialectName, Section, closest


class ShowConfig(Section):
    """`evaluation.show`: which completions an editor shows. Give one of the two."""

    lose_accepted: float | None = Field(
        None, gt=0, lt=1, description="Largest share of the correct completions that may be hidden."
    )
    precision: float | None = Field(
        None, gt=0, lt=1, description="Least share of correct ones among the completions that are shown."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> ShowConfig:
        if (self.lose_accepted is None) == (self.precision is None):
            raise ValueError("set either `lose_accepted` or `precision`")
        return self


class EvaluationConfig(Section):
    """`evaluation`: generation and metrics on held-out rows."""

    max_rows: int | None = Field(500, ge=1, description="Held-out rows to evaluate; null: all.")
    max_new_tokens: int = Field(
        96, ge=1, description="Maximum tokens of a completion; one that does not end before counts as runaway."
    )
    batch_size: int = Field(32, ge=1, description="Rows decoded together.")
    dialect: DialectName = Field("snowflake", description="sqlglot dialect for parsing, binding and SQL tokens.")
    bootstrap_samples: int = Field(1000, ge=100, description="Bootstrap resamples per confidence interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    examples: int = Field(20, ge=0, description="Examples shown in the report.")
    show: ShowConfig | None = Field(
        ShowConfig(lose_accepted=0.05),
        description="The filter that `fim complete` and `fim serve` apply to completions, fitted to one half of the "
        "held-out groups and measured on the other. null: show every completion.",
    )
    latency_rows: int = Field(
        0,
        ge=0,
        description="Held-out rows to complete one by one, as `fim serve` does, to measure the latency on the machine that "
        "makes the report; 0: do not measure it.",
    )
    backend: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="Engine that generates completions. vllm needs that package and a GPU; it has not been run yet.",
    )


class GateRule(Section):
    """One condition for promotion to champion."""

    metric: str = Field(
        description="Metric of the report, for example exact_match_sql; or latency_p50_ms or latency_p95_ms, with at_most."
    )
    rule: Literal[
        "finite", "better_than_base", "better_than_constants", "not_worse", "better", "at_least", "at_most"
    ] = Field(
        description="better_than_base: better than the model before training. better_than_constants: better than always "
        "the empty completion, and than always the most frequent completion of the training rows. better, not_worse: "
        "compared with the champion, on the rows that it can read. These compare by the confidence interval of the paired "
        "difference on the same rows. at_least, at_most: compared with `value`. finite: the metric is a number."
    )
    value: float | None = Field(None, description="Bound for at_least and at_most; allowed slack for not_worse.")

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        from fim_core.metrics.latency import LATENCIES
        from fim_core.metrics.registry import METRICS

        known = [*METRICS, *LATENCIES]
        if value not in known:
            raise ValueError(f"no such metric: {value}{closest(value, known)} (there are {', '.join(known)})")
        return value

    @model_validator(mode="after")
    def _bound_has_a_value(self) -> GateRule:
        if self.rule in ("at_least", "at_most") and self.value is None:
            raise ValueError(f"{self.rule} needs `value`")
        if self.is_latency and self.rule != "at_most":
            raise ValueError(f"{self.metric} is measured for the candidate only: use at_most")
        return self

    @property
    def is_latency(self) -> bool:
        """Whether the rule is on a latency, which is measured only with `evaluation.latency_rows`."""
        from fim_core.metrics.latency import LATENCIES

        return self.metric in LATENCIES


DEFAULT_GATE = [
    GateRule(metric="loss", rule="finite"),
    GateRule(metric="exact_match_sql", rule="better_than_base"),
    # A model that has only learned the format beats a base that does not know the format, but not the constants.
    GateRule(metric="exact_match_sql", rule="better_than_constants"),
    # Such a model has no lower loss at the accepted text either. The end token is left out: a base need not know it.
    GateRule(metric="loss_text", rule="better_than_base"),
    GateRule(metric="exact_match_sql", rule="not_worse"),
    GateRule(metric="binds", rule="not_worse"),
    GateRule(metric="abstention_precision", rule="not_worse"),
    # With slack: a model that leaves too many completions empty gains here without being better.
    GateRule(metric="abstention_recall", rule="not_worse", value=0.1),
]


class GateConfig(Section):
    """`gate`: the rules for promotion of a candidate to champion."""

    rules: list[GateRule] = Field(DEFAULT_GATE, description="Rules, all of which must hold.")


class ServingConfig(Section):
    """`serving`: options of `fim complete` and `fim serve` with `--experiment`."""

    candidates: int = Field(
        1,
        ge=1,
        le=16,
        description="Completions to choose from, if the most probable one does not parse or names something that does "
        "not exist.",
    )
