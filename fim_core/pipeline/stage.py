"""Stages of the pipeline: what each needs, what decides its content, how it is made, and what its checks look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fim_core.batch_cache import BatchCache
from fim_core.config import Experiment
from fim_core.launchers.base import StartRanks
from fim_core.pipeline.code_version import code_version
from fim_core.store import Artifact, Store

OnEvent = Callable[[dict[str, Any]], None]


def _no_tables(folder: Path) -> Mapping[str, Path]:
    return {}


@dataclass(frozen=True)
class Build:
    """What a stage gets to work with.

    Attributes:
        experiment: the options.
        inputs: upstream artifacts by asset name.
        output: folder to write the artifact into.
        work: folder that outlives a failed attempt at the same version; a retry resumes from it.
        on_event: hears of progress, one dict an event.
        cache: batches computed by earlier builds under the same options and code, whatever their inputs were.
        start: starts the ranks of a training run; None for the launcher's own way.
    """

    experiment: Experiment
    store: Store
    inputs: Mapping[str, Artifact]
    output: Path
    work: Callable[[], Path]
    on_event: OnEvent
    cache: BatchCache
    start: StartRanks | None


@dataclass(frozen=True)
class Stage:
    """One asset and how it is made.

    Attributes:
        asset: its name.
        upstream: assets that it reads.
        code: modules whose code decides the content, with all that they import (see `code_version`): the stage's own, and
            those that the build starts as programs.
        options: the part of the experiment that decides the content, JSON-serialisable.
        build: writes the artifact and returns its counts, JSON-serialisable.
        outside: content hashes of what it reads beside artifacts (exports, pretrained weights, the champion).
        adopt: whether a finished artifact becomes the current one; a refused champion does not.
        trains: whether it, or a stage after it, trains: then the pretrained model must be there.
        tables: files and folders that the checks look at, by the names that they use; the main one has the asset's name.
        checks_with: upstream assets whose tables and facts the checks use, too; of two tables of one name, the asset's
            own counts.
        present: writes what people look at into a published version, again when its code has changed. It is no part of the
            artifact: neither the version nor the manifest covers it.
        compares_with_previous: whether the checks see the main table of the version before, as `previous`.
    """

    asset: str
    upstream: tuple[str, ...]
    code: tuple[str, ...]
    options: Callable[[Experiment], dict[str, Any]]
    build: Callable[[Build], dict[str, Any]]
    outside: Callable[[Experiment, Store, Mapping[str, Artifact]], dict[str, str]] = field(
        default=lambda experiment, store, inputs: {}
    )
    adopt: Callable[[Artifact], bool] = field(default=lambda artifact: True)
    trains: bool = True
    tables: Callable[[Path], Mapping[str, Path]] = _no_tables
    checks_with: tuple[str, ...] = ()
    compares_with_previous: bool = False
    present: Callable[[Artifact], None] = field(default=lambda artifact: None)

    @property
    def code_version(self) -> str:
        """Version of the code that decides the content."""
        return code_version(*self.code)
