"""`retraining`, `exports`, `notify`, `metadata`, `checks`: how the pipeline runs in Dagster."""

from __future__ import annotations

import zoneinfo
from typing import Any, Literal

from pydantic import Field, field_validator

from fim_core.config.base import Place, Section, closest


class RetrainingConfig(Section):
    """`retraining`: when the model is retrained."""

    cron: str = Field("0 3 * * 0", description="Five-field cron of the retraining. Default: Sunday, 03:00.")
    timezone: str = Field("UTC", description="Time zone of the cron, an IANA name.")
    enabled: bool = Field(False, description="Whether the schedule starts switched on.")
    max_age_days: float = Field(8.0, gt=0, description="A checkpoint older than this fails its freshness policy.")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        from croniter import croniter

        if len(fields := value.split()) != 5:
            raise ValueError(
                f"{value!r} has {len(fields)} fields; a cron has five: minute, hour, day of month, month, day of week"
            )
        if not croniter.is_valid(value, strict=True):
            raise ValueError(
                f"{value!r} is not a valid cron expression; write for example '0 3 * * 0' for Sundays at 03:00"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        if value not in (known := zoneinfo.available_timezones()):
            raise ValueError(f"no such time zone: {value}{closest(value, sorted(known))}")
        return value


class ExportsConfig(Section):
    """`exports`: the folder that the sensor watches."""

    folder: Place = Field("exports", description="Folder that new exports arrive in, as `data.sources` reads them.")
    settle_seconds: float = Field(
        30.0, ge=0, description="A file counts as written when it has not changed for so long."
    )
    enabled: bool = Field(False, description="Whether the sensor starts switched on.")


class NotifyConfig(Section):
    """`notify`: who hears of a failed run."""

    webhook: str | None = Field(
        None, pattern=r"^https?://", description="URL that gets a JSON message by POST. Without it, the log only."
    )


class MetadataConfig(Section):
    """`metadata`: what the UI shows."""

    show_samples: bool = Field(False, description="Show customer text (prompts, completions) in the UI and the report.")


class CheckOverride(Section):
    """Changes to one data-quality check, by its name."""

    severity: Literal["error", "warn", "off"] | None = Field(
        None, description="error stops what comes after; warn reports; off leaves the check out."
    )
    max_rows: int | None = Field(None, ge=0, description="Offending rows that are tolerated.")
    max_share: float | None = Field(None, ge=0, le=1, description="Share of offending rows that is tolerated.")

    @field_validator("severity", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value
