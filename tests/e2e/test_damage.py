"""Damaged artifacts: reported with file and remedy, without a traceback, and made again on request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from damage import DAMAGES, damaged
from typer.testing import CliRunner

from fim_core.cli.main import app
from fim_core.config import Experiment, load_experiment
from fim_core.errors import DamagedFile, FimError
from fim_core.folders.report import ReportFolder
from fim_core.pipeline import STAGES, run
from fim_core.serving.completer import Completer
from fim_core.store import Store, require_whole_copy


@pytest.fixture
def experiment(finished: Path, tmp_path: Path) -> Experiment:
    """The finished experiment with a copy of its store."""
    original = load_experiment(finished)
    shutil.copytree(original.storage, tmp_path / "store", symlinks=True)
    return original.model_copy(update={"storage": tmp_path / "store"})


def files_of(store: Store) -> list[Path]:
    folders = [store.current(stage.asset).path for stage in STAGES[:5]]
    folders.append(store.versions("champion_model")[-1].path)
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    # The page is written again from the report whenever it is needed.
    return sorted(files - {ReportFolder(folder).page for folder in folders})


def sentence_of(experiment: Experiment) -> str:
    """What a run reports about damage."""
    with pytest.raises(FimError) as error:
        run(experiment)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_damage_of_any_kind_to_any_file_is_reported_in_one_sentence(experiment: Experiment) -> None:
    """35 files in 8 states each: 280 cases."""
    files = files_of(Store(experiment.storage))
    assert len(files) >= 35
    for path in files:
        asset, version = path.relative_to(experiment.storage).parts[:2]
        for damage in (*DAMAGES, "missing"):
            with damaged(path, damage):
                message = sentence_of(experiment)
            assert asset in message, (path, damage)
            assert version in message, (path, damage)
            assert path.name in message, (path, damage)
            assert "fim verify --delete" in message or "Move it away" in message or "Move /" in message, (path, damage)
    assert all(result.reused for result in run(experiment).values())


@pytest.mark.parametrize("before", ["missing", "of other code"])
def test_the_page_is_written_again_without_evaluating_again(experiment: Experiment, before: str) -> None:
    report = ReportFolder(Store(experiment.storage).current("evaluation_report").path)
    content, inode = report.page.read_text(), report.report.stat().st_ino
    if before == "missing":
        report.page.unlink()
    else:
        report.page.write_text(content.replace("</body>", "<p>an older look</p></body>"))
        assert report.page.read_text() != content
    assert run(experiment)["evaluation_report"].reused
    assert report.page.read_text() == content
    assert report.report.stat().st_ino == inode


def test_a_damaged_version_is_made_again_on_request(experiment: Experiment) -> None:
    store = Store(experiment.storage)
    arguments = ["verify", "--storage", str(store.root)]
    tell = lambda *options: CliRunner().invoke(app, [*arguments, *options])  # noqa: E731
    assert tell().exit_code == 0
    assert tell().output.startswith("6 versions are intact, 0 are damaged.")

    raw = store.current("raw_completions").path / "raw_completions.parquet"
    whole = raw.read_bytes()
    raw.write_bytes(DAMAGES["one bit"](whole))
    assert "raw_completions.parquet has changed" in sentence_of(experiment)
    dry = tell()
    assert dry.exit_code == 1
    assert f"damaged  {raw.parent}: raw_completions.parquet has changed" in dry.output
    assert raw.exists()
    removed = tell("--delete")
    assert removed.exit_code == 0, removed.output
    assert not raw.exists()
    assert not run(experiment, until="raw_completions")["raw_completions"].reused
    assert raw.read_bytes() == whole
    assert tell().exit_code == 0


def test_a_version_with_a_damaged_manifest_is_reported_and_left_alone(experiment: Experiment) -> None:
    store = Store(experiment.storage)
    folder = store.current("fim_prompts").path
    (folder / "manifest.json").write_text("{}")
    result = CliRunner().invoke(app, ["verify", "--delete", "--storage", str(store.root)])
    assert result.exit_code == 1
    assert f"damaged  {folder}: its manifest.json is missing or damaged. Move the folder away." in result.output
    assert (folder / "prompts.parquet").exists()


def test_a_copied_checkpoint_is_verified_when_it_is_used(experiment: Experiment, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(Store(experiment.storage).current("trained_checkpoint").path, copy)
    (copy / "README.md").write_text("Notes of my own.")
    require_whole_copy(copy)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "fim.json"):
        with damaged(copy / name, "one bit"), pytest.raises(DamagedFile, match=f"{name} has changed"):
            Completer.load(copy)
    for damage in ("truncated", "empty", "one bit", "not text"):
        with damaged(copy / "manifest.json", damage), pytest.raises(DamagedFile, match=r"manifest\.json"):
            Completer.load(copy)
    for not_ours in ("missing", "{}", "[]", "a number"):
        with damaged(copy / "manifest.json", not_ours):
            require_whole_copy(copy)
