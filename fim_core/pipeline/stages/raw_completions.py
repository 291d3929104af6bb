"""Stage `raw_completions`: exports → raw rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fim_core.config import Experiment, Source
from fim_core.folders.raw import RawFolder
from fim_core.object_storage.download import DOWNLOADS
from fim_core.object_storage.urls import is_url
from fim_core.pipeline.stage import Build, Stage
from fim_core.store import Artifact, Store

_SOURCE_OPTIONS = (
    "type",
    "split",
    "sample_ratio",
    "sample_count",
    "sample_seed",
    "kwargs",
    "input_col",
    "output_col",
    "type_col",
    "columns",
    "render",
    "role_mapping",
    "content_key",
    "sql",
    "table_name",
    "column_mapping",
    "limit",
    "rows",
    "seed",
)


def _options(experiment: Experiment) -> dict[str, Any]:
    data = experiment.data
    # Part of the options, so that training notices rows that were read with another window.
    window = {"window": data.window} if data.window is not None else {}
    return window | {
        part: [_source_options(source) for source in sources]
        for part, sources in (("sources", data.sources), ("eval_sources", data.eval_sources))
    }


def _source_options(source: Source) -> dict[str, Any]:
    options = source.model_dump(mode="json", include=set(_SOURCE_OPTIONS))
    # Left out where it is not set, as in versions that were made before there was feedback.
    return options | ({"feedback": source.feedback.model_dump(mode="json")} if source.feedback else {})


def _exports(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    from fim_core.records.sources import digest_sources

    return {"exports": digest_sources(experiment.data, _downloads(experiment, store))}


def _build(build: Build) -> dict[str, Any]:
    from fim_core.records.sources import write_raw_completions

    downloads = _downloads(build.experiment, build.store)
    return asdict(write_raw_completions(build.experiment.data, RawFolder(build.output).rows, downloads))


def _downloads(experiment: Experiment, store: Store) -> Path | None:
    """The folder for copies of what is not on this machine; None if everything is."""
    sources = (*experiment.data.sources, *experiment.data.eval_sources)
    if not any(source.type == "snowflake" or is_url(source.name_or_path or "") for source in sources):
        return None
    with store.reporting_unwritable("raw_completions"):
        return store.folder(DOWNLOADS)


raw_completions = Stage(
    asset="raw_completions",
    upstream=(),
    code=(__name__,),
    options=_options,
    outside=_exports,
    build=_build,
    tables=lambda folder: {"raw_completions": RawFolder(folder).rows},
)
