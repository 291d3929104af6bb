"""Sections for running the pipeline in Dagster: `retraining`, `exports`, `notify`, `metadata`, `checks`."""

from __future__ import annotations

import zoneinfo
from typing import Any, Literal

from pydantic import Field, field_validator

from fim_core.config.base import PlaceOrId, Section, closest


class RetrainingConfig(Section):
    """`retraining`: schedule of the retraining."""

    cron: str = Field("0 3 * * 0", description="Cron expression with five fields. Default: Sundays at 03:00.")
    timezone: str = Field("UTC", description="IANA time zone of the cron expression.")
    enabled: bool = Field(False, description="Whether the schedule starts switched on.")
    max_age_days: float = Field(
        8.0, gt=0, description="Age in days from which a checkpoint fails its freshness policy."
    )

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        from croniter import croniter

        if len(fields := value.split()) != 5:
            raise ValueError(
                f"{value!r} has {len(fields)} fields; a cron expression has five: minute, hour, day of month, month, day "
                "of week"
            )
        if not croniter.is_valid(value, strict=True):
            raise ValueError(
                f"{value!r} is not a valid cron expression; for example, '0 3 * * 0' means Sundays at 03:00"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        if value not in (known := zoneinfo.available_timezones()):
            raise ValueError(f"no such time zone: {value}{closest(value, sorted(known))}")
        return value


class ExportsConfig(Section):
    """`exports`: the folder that the exports sensor watches."""

    folder: PlaceOrId = Field(
        "exports", description="Folder or URL of object storage to watch for new exports, as read by `data.sources`."
    )
    settle_seconds: float = Field(
        30.0, ge=0, description="Seconds without a change after which a file counts as completely written."
    )
    enabled: bool = Field(False, description="Whether the sensor starts switched on.")


class NotifyConfig(Section):
    """`notify`: notification of failed runs."""

    webhook: str | None = Field(
        None, pattern=r"^https?://", description="URL to POST a JSON message to. Default: failures are only logged."
    )


class MetadataConfig(Section):
    """`metadata`: content shown in the UI."""

    show_samples: bool = Field(
        False, description="Whether to show customer text (prompts, completions) in the UI and the report."
    )


class CheckOverride(Section):
    """Overrides of one data-quality check."""

    severity: Literal["error", "warn", "off"] | None = Field(
        None, description="error: stop downstream assets. warn: only report. off: skip the check."
    )
    max_rows: int | None = Field(None, ge=0, description="Maximum number of offending rows.")
    max_share: float | None = Field(None, ge=0, le=1, description="Maximum share of offending rows.")

    @field_validator("severity", mode="before")
    @classmethod
    def _off_as_text(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value
