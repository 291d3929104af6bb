"""Foreign files: no command deletes or replaces what this package did not write."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from foreign_files import ASSETS, MONTH_SECONDS, VERSION, changed, fill, snapshot
from typer.testing import CliRunner

from fim_core import store as store_module
from fim_core.benchmark.build import build_benchmark
from fim_core.champion.registry import roll_back
from fim_core.cli.main import app
from fim_core.config import load_experiment
from fim_core.convert import convert
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.launchers.launch import launch
from fim_core.pipeline import STAGES, run
from fim_core.pipeline.garbage import find_garbage, remove
from fim_core.store import Store, version_of
from fim_core.training.checkpoint import remove_leftovers

IDENTITY = {"inputs": {"champion": "none"}, "config": {"rows": 3}, "code": "1"}
GC = ("gc", "--delete", "--fresh-minutes", "0", "--work-days", "0", "--keep-checkpoints", "1", "--keep-champions", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder full of foreign files; its links lead to `outside` next to it."""
    fill(tmp_path / "folder", tmp_path / "outside")
    return tmp_path / "folder"


def fim(*arguments: str) -> str:
    """Run a command, which may fail with an error message but not with a traceback."""
    result = CliRunner().invoke(app, [*arguments])
    assert result.exception is None or isinstance(result.exception, (FimError, SystemExit)), result.exc_info
    return result.output + str(result.exception)


def publish(store: Store, asset: str, number: int = 0, *, experiment: str = "demo", replace: bool = False, **counts):
    identity = IDENTITY | {"config": {"number": number}}
    with store.publish(asset, experiment=experiment, replace=replace, **identity) as draft:
        (draft.path / "content").write_text(f"content {number}")
        draft.counts.update(counts)
    return store.find(asset, version_of(**identity))


def collect(folder: Path) -> None:
    fim(*GC, "--storage", str(folder))
    fim(*GC, "--storage", str(folder), "--forget", "demo")
    fim("verify", "--delete", "--storage", str(folder))


def collect_here(folder: Path) -> None:
    """With the current folder as the storage, given in every possible way."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        fim(*GC, "--storage", ".")
        fim("verify", "--delete", "--storage", ".")
        for empty in ("", " "):
            os.environ["FIM_STORAGE"] = empty
            fim(*GC)
            fim(*GC, "--forget", "demo")
            fim("verify", "--delete")
    finally:
        os.environ.pop("FIM_STORAGE")
        os.chdir(before)


def collect_by_function(folder: Path) -> None:
    store = Store(folder)
    for forget in ((), ("demo",)):
        with suppress(FimError):
            remove(store, find_garbage(store, forget=forget, fresh_minutes=0, work_days=0))


def publish_everything(folder: Path) -> None:
    store = Store(folder)
    for number in (0, 1, 1):
        for asset in ASSETS:
            with suppress(FimError):
                store.use(publish(store, asset, number, replace=True, promote=True, candidate="c"), "demo")
            store.forget_checks(asset, VERSION)
    store.drafts()
    with suppress(FimError):
        roll_back(store, "demo")
    store.repair_current()


def publish_in_place_of_something_else(folder: Path) -> None:
    """Folders, one of them empty, a file and links at the paths of the new versions."""
    store, version = Store(folder), version_of(**IDENTITY | {"config": {"number": 0}})
    before = snapshot(folder)
    places = {asset: folder / asset / version for asset in ASSETS if asset != "evaluation_report"}
    places["raw_completions"].mkdir()
    (places["raw_completions"] / "manifest.json").write_text("{}")
    places["fim_prompts"].mkdir()
    places["tokenized_dataset"].write_text("a file")
    places["trained_checkpoint"].symlink_to(folder / "step-7")
    places["champion_model"].symlink_to(folder / "nothing")
    before = snapshot(folder)
    for asset in ASSETS:
        for replace in (False, True):
            with pytest.raises(FimError):
                publish(store, asset, replace=replace)
        with suppress(FimError), store.making(asset, VERSION):
            pass
    assert changed(before, folder) == []


def fail_half_way(folder: Path) -> None:
    for asset in ASSETS:
        with suppress(FimError, RuntimeError), Store(folder).publish(asset, experiment="demo", **IDENTITY) as draft:
            (draft.path / "half").write_text("half")
            raise RuntimeError


def clear_work(folder: Path) -> None:
    store = Store(folder)
    for asset in ASSETS:
        for version in (16 * "f", 16 * "1"):
            with suppress(FimError):
                (store.work_folder(asset, version) / "state").mkdir()
            store.clear_work(asset, version)


def run_pipeline(folder: Path) -> None:
    path = folder.parent / "experiment.yaml"
    source = "{type: demo, rows: 40}"
    path.write_text(f"name: demo\nstorage: {folder}\nmodel: {{name_or_path: m}}\ndata: {{sources: [{source}]}}\n")
    with suppress(FimError):
        run(load_experiment(path), until="raw_completions", force=True)


def convert_onto(folder: Path) -> None:
    export = folder.parent / "export.csv"
    export.write_text('INPUT,OUTPUT\n"[{""type"":""text"",""text"":""a <fillMe>""}]",y\n')
    tokenizer = folder.parent / "tokens"
    train_tokenizer(["select a from t;"] * 3, 600).save_pretrained(tokenizer)
    # With and without a summary, a list of rejected rows, or an output in place; the last is the folder itself.
    for name in ("output", "bare", "lone", "step-7", "linked", "model", "demo.parquet", "tmp", "work", "."):
        for form in ("disk", "parquet"):
            with pytest.raises(FimError, match="not written by `fim convert`"):
                convert(export, folder / name if name != "." else folder, tokenizer=str(tokenizer), format=form)


def write_demo_data(folder: Path) -> None:
    for name in ("demo.csv", "demo.parquet"):
        fim("demo-data", "-o", str(folder / name), "--rows", "5")


def build_benchmarks(folder: Path) -> None:
    with suppress(FimError):
        build_benchmark(folder, items_per_kind=1, seed=1)


def train_in(folder: Path) -> None:
    experiment = folder.parent / "experiment.yaml"
    experiment.write_text("model: {name_or_path: m}\ndata: {sources: [{type: demo}]}\n")
    for place in (folder, folder / "model", folder / "state"):
        with suppress(FimError):
            launch(load_experiment(experiment), folder / "none", folder / "none", place, start=_start_nothing)


def _start_nothing(*_: object) -> None:
    raise FimError("nothing is started")


def clean_up_states(folder: Path) -> None:
    remove_leftovers(folder)
    remove_leftovers(folder / "state")


@pytest.mark.parametrize(
    "action",
    [
        collect,
        collect_here,
        collect_by_function,
        publish_everything,
        publish_in_place_of_something_else,
        fail_half_way,
        clear_work,
        run_pipeline,
        convert_onto,
        write_demo_data,
        build_benchmarks,
        train_in,
        clean_up_states,
    ],
)
@pytest.mark.parametrize("marked", [False, True])
def test_foreign_files_stay_as_they_are(
    action: Callable[[Path], None], marked: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIM_STORAGE", raising=False)
    if marked:
        (folder / "fim-store.json").write_text('{"fim_store": 1}')
    before = snapshot(folder, folder.parent / "outside")
    action(folder)
    assert changed(before, folder, folder.parent / "outside") == []


@pytest.mark.parametrize("storage", ["--storage", ""])
def test_folders_that_only_share_names_with_a_store_stay(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work/uni/thesis", "tmp/notes", "batch_cache/engine/piston"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "chapter.txt").write_text(name)
    long_ago = time.time() - MONTH_SECONDS
    for path in tmp_path.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIM_STORAGE", "")
    fim("gc", "--delete", *([storage, "."] if storage else []))
    assert changed(before, tmp_path) == []


def test_garbage_collection_among_foreign_files(tmp_path: Path) -> None:
    """All kinds of garbage, in a store to which foreign files were added later."""
    folder = tmp_path / "folder"
    store = Store(folder)
    own = [publish(store, asset, number, promote=True).path for asset in ASSETS[:3] for number in (0, 1)]
    own.append(store.work_folder("trained_checkpoint", VERSION))
    part = store.folder("batch_cache", "fim_prompts") / f"{64 * 'a'}.arrow"
    part.write_text("part")
    check = store.folder("checks", "raw_completions") / f"{own[0].name}-{VERSION}.json"
    check.write_text("[]")
    draft = store.folder("tmp") / f"raw_completions-{VERSION}-1-{8 * 'a'}"
    draft.mkdir()
    old = time.time() - MONTH_SECONDS
    for path in (own[-1], part, draft):
        os.utime(path, (old, old))
    kept = publish(store, "trained_checkpoint", 2)
    store.use(kept, "demo")
    for path in (folder / "trained_checkpoint" / "current", folder / "trained_checkpoint" / "by_experiment"):
        shutil.move(path, tmp_path)
    fill(folder, tmp_path / "outside")
    for path in (folder / "trained_checkpoint" / "by_experiment").iterdir():
        path.unlink()
    (folder / "trained_checkpoint" / "by_experiment").rmdir()
    for name in ("current", "by_experiment"):
        shutil.move(tmp_path / name, folder / "trained_checkpoint")
    ours = {str(p) for path in (*own, part, check, draft, kept.path) for p in (path, *path.rglob("*"))}
    ours |= {str(p) for p in (folder / "trained_checkpoint").glob("current")}
    ours |= {str(p) for p in (folder / "trained_checkpoint" / "by_experiment").glob("*")}
    before = {path: content for path, content in snapshot(tmp_path).items() if path not in ours}
    collect(folder)
    assert changed(before, tmp_path) == []
    assert [path for path in (*own, part, check, draft, kept.path) if path.exists()] == []
    assert not os.path.lexists(folder / "trained_checkpoint" / "current")


def test_a_new_store_is_marked_and_a_folder_with_foreign_files_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "foreign", tmp_path / "outside")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    (tmp_path / "same names" / "work" / "uni").mkdir(parents=True)
    for name, marked in (("new", True), ("empty", True), ("foreign", False), ("notes", False), ("same names", False)):
        store = Store(tmp_path / name)
        with suppress(FimError):
            publish(store, "raw_completions")
        assert store.has_mark() == marked, name
        if not marked:
            with pytest.raises(FimError, match=r"has no valid fim-store\.json"):
                find_garbage(store)
    assert json.loads((tmp_path / "new" / "fim-store.json").read_text()) == {"fim_store": 1}


def test_the_next_run_restores_a_missing_mark(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.use(publish(store, "raw_completions"), "demo")
    store.work_folder("trained_checkpoint", VERSION)
    (tmp_path / "fim-store.json").unlink()
    with pytest.raises(FimError, match="so nothing in it is deleted"):
        store.remove(tmp_path / "raw_completions" / VERSION)
    with store.making("raw_completions", VERSION):
        assert store.has_mark()


def test_the_store_knows_the_assets_of_the_pipeline() -> None:
    assert tuple(stage.asset for stage in STAGES) == store_module.ASSETS == ASSETS


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_storage_counts_as_unset(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIM_STORAGE", value)
    path = tmp_path / "experiment.yaml"
    path.write_text("model: {name_or_path: m}\ndata: {sources: [{type: demo}]}\n")
    assert load_experiment(path).storage == Path(".fim")
    monkeypatch.chdir(tmp_path)
    assert "no folder .fim" in fim("gc")
    path.write_text("storage: ''\nmodel: {name_or_path: m}\ndata: {sources: [{type: demo}]}\n")
    with pytest.raises(FimError, match="storage: the path is empty"):
        load_experiment(path)
