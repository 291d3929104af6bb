"""The pipeline as Dagster assets, checks, jobs, schedules and sensors."""
