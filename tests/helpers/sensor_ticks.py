"""Single evaluations of the exports sensor."""

from __future__ import annotations

import dagster as dg

from fim_assets.automation.exports import exports_sensor
from fim_assets.automation.jobs import build_jobs
from fim_assets.instance import PipelineInstance
from fim_core.config.workflow import ExportsConfig


def tick(folder: str, cursor: str | None, settle_seconds: float) -> tuple[list[str], str | None, str]:
    """Evaluate the sensor once: run keys, new cursor, skip reason."""
    pipeline = PipelineInstance("tiny.yaml")
    config = ExportsConfig(folder=folder, settle_seconds=settle_seconds)
    sensor = exports_sensor(pipeline, build_jobs(pipeline)["prepare_data"], config)
    with dg.instance_for_test() as instance:
        context = dg.build_sensor_context(cursor=cursor, instance=instance)
        result = sensor(context)
    if isinstance(result, dg.SkipReason):
        return [], context.cursor, result.skip_message or ""
    assert isinstance(result, dg.SensorResult)
    return [request.run_key or "" for request in result.run_requests or []], result.cursor, ""
