"""Definition of a pipeline stage: inputs, options, code, build function and tables for its checks."""

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
    """Arguments of a stage's build function.

    Attributes:
        experiment: the options.
        inputs: upstream artifacts by asset name.
        output: folder to write the artifact into.
        work: returns a folder that survives a failed attempt at the same version; a retry resumes from it.
        on_event: called with progress events.
        cache: results of earlier builds, per batch of rows, with the same options and code, whatever their inputs.
        start: starts the ranks of a training run; None: start them with the experiment's launcher.
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
        asset: name of the asset.
        upstream: names of the assets that it reads.
        code: modules that determine the content, together with their imports (see `code_version`): the stage's module, and
            those that the build runs as programs.
        options: returns the options that determine the content, JSON-serializable.
        build: writes the artifact and returns its counts, JSON-serializable.
        outside: returns content hashes of inputs that are not artifacts (exports, pretrained weights, the champion).
        adopt: whether a finished artifact becomes the current one; a refused champion does not.
        trains: whether this stage or a later one trains, so that the pretrained model is needed.
        tables: returns the files and folders that the checks read, by table name; the main one has the asset's name.
        checks_with: upstream assets whose tables and facts the checks also use. If two tables have the same name, that of
            the asset itself is used.
        present: writes files for people into a published version, again whenever what they show has changed. They are not
            part of the artifact: neither version nor manifest covers them.
        finish: called last, also if the version is reused; publishes what has become current.
        compares_with_previous: whether the checks can read the main table of the previous version, as `previous`.
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
    present: Callable[[Artifact, Experiment, Store], None] = field(default=lambda artifact, experiment, store: None)
    finish: Callable[[Experiment, Store, OnEvent], None] = field(default=lambda experiment, store, on_event: None)

    @property
    def code_version(self) -> str:
        """Version of the code that determines the content."""
        return code_version(*self.code)
