"""A version is made of exactly what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_pipeline import TINY, write_experiment

from fim_core.config import load_experiment
from fim_core.errors import FimError
from fim_core.pipeline import data, run_stage, stage_of
from fim_core.records import sources
from fim_core.store import Store


def test_an_export_that_grows_while_it_is_read_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = tmp_path / "export.csv"
    row = '"{""query"": ""select <fillMe>""}",1\n'
    export.write_text("INPUT,OUTPUT\n" + row)
    path = write_experiment(tmp_path, data={**TINY["data"], "sources": [{"name_or_path": str(export)}]})
    experiment = load_experiment(path)
    store = Store(experiment.storage)
    read = sources.write_raw_completions

    def read_while_it_grows(*arguments: object) -> object:
        counts = read(*arguments)  # type: ignore[arg-type]
        with export.open("a") as file:
            file.write(row)
        return counts

    monkeypatch.setattr(sources, "write_raw_completions", read_while_it_grows)
    with pytest.raises(FimError, match=r"changed while it was made \(exports\)"):
        run_stage(data.raw_completions, experiment, store, upstream_of=stage_of)
    assert store.versions("raw_completions") == []
    assert store.drafts() == []

    monkeypatch.undo()
    result = run_stage(data.raw_completions, experiment, store, upstream_of=stage_of)
    assert result.artifact.counts["rows"] == 2
