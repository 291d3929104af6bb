"""Store: publishing, versions, links, locks, and kills at any moment."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from fim_core.errors import FimError
from fim_core.store import Store, version_of

IDENTITY = {"inputs": {"exports": "abc"}, "config": {"rows": 3}, "code": "1"}


def publish(store: Store, text: str = "content", *, experiment: str = "demo", replace: bool = False, **changes: object):
    identity = {**IDENTITY, **changes}
    with store.publish("raw_completions", experiment=experiment, replace=replace, **identity) as draft:
        (draft.path / "rows.txt").write_text(text)
        draft.counts["rows"] = 3
    return store.find("raw_completions", version_of(**identity))


def test_a_published_version_is_found_with_its_manifest(tmp_path: Path) -> None:
    artifact = publish(Store(tmp_path))
    assert artifact.path == tmp_path / "raw_completions" / artifact.version
    assert (artifact.path / "rows.txt").read_text() == "content"
    assert artifact.counts == {"rows": 3}
    assert artifact.manifest["inputs"] == IDENTITY["inputs"]
    assert artifact.manifest["bytes"] == len("content")


@pytest.mark.parametrize("changes", [{"inputs": {"exports": "abd"}}, {"config": {"rows": 4}}, {"code": "2"}])
def test_everything_that_decides_the_content_changes_the_version(changes: dict) -> None:
    assert version_of(**IDENTITY) != version_of(**{**IDENTITY, **changes})


def test_a_failed_draft_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.use(publish(store), "demo")

    def fail_half_way() -> None:
        with store.publish("raw_completions", experiment="demo", **{**IDENTITY, "code": "2"}) as draft:
            (draft.path / "half").write_text("half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert [a.version for a in store.versions("raw_completions")] == [version_of(**IDENTITY)]
    assert store.current("raw_completions", "demo").version == version_of(**IDENTITY)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_each_experiment_keeps_its_own_current_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = publish(store), publish(store, config={"rows": 5})
    store.use(first, "demo")
    store.use(second, "other")
    assert store.current("raw_completions", "demo") == first
    assert store.current("raw_completions").version == second.version
    assert os.readlink(tmp_path / "raw_completions" / "current") == second.version


def test_versions_are_in_the_order_of_their_builds_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, made = Store(tmp_path), []
    for number, year in enumerate((2030, 2020, 2025)):
        moment = datetime(year, 1, 1, tzinfo=UTC)
        monkeypatch.setattr("fim_core.store.publish.datetime", SimpleNamespace(now=lambda zone, moment=moment: moment))
        made.append(publish(store, config={"number": number}).version)
    assert [artifact.version for artifact in store.versions("raw_completions")] == made


def test_one_damaged_version_hides_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    whole, damaged = publish(store), publish(store, config={"rows": 4})
    for content in (b"", b"{", b"[]", b"{}", b"\xff", b'{"asset": "raw_completions", "version": 3}', b"[" * 100_000):
        (damaged.path / "manifest.json").write_bytes(content)
        assert store.versions("raw_completions") == [whole]
        assert store.find("raw_completions", damaged.version) is None
        with pytest.raises(FimError, match=r"its manifest\.json is damaged"):
            publish(store, replace=True, config={"rows": 4})


def test_a_missing_asset_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="Materialize raw_completions first"):
        Store(tmp_path).current("raw_completions", "demo")


def test_two_writers_of_one_version_end_with_one_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.publish("raw_completions", experiment="demo", **IDENTITY) as slow:
        (slow.path / "rows.txt").write_text("content")
        publish(store)
    assert len(store.versions("raw_completions")) == 1


def test_a_replaced_version_is_swapped_and_its_checks_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = publish(store, "first").version
    checks = tmp_path / "checks" / "raw_completions"
    checks.mkdir(parents=True)
    found, others = checks / f"{version}-{16 * 'a'}.json", checks / f"{16 * '0'}-{16 * 'a'}.json"
    found.touch()
    others.touch()
    assert (publish(store, "second", replace=True).path / "rows.txt").read_text() == "second"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in checks.iterdir()] == [others.name]


def test_folders_are_swapped_even_without_an_atomic_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: object())
    store = Store(tmp_path)
    publish(store, "first")
    assert (publish(store, "second", replace=True).path / "rows.txt").read_text() == "second"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/fim", "/dev/null/fim", "a file"])
def test_a_folder_that_cannot_be_written_is_a_clear_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    store = Store(tmp_path / place)
    with pytest.raises(FimError, match="cannot be written"), store.making("raw_completions", "abc"):
        pass
    with pytest.raises(FimError, match="cannot be written"):
        publish(store)


def test_a_version_is_made_by_one_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    order = []

    def second() -> None:
        with store.making("raw_completions", "abc"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with store.making("raw_completions", "abc"):
        assert store.is_being_made("raw_completions", "abc")
        waiting.start()
        time.sleep(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert not store.is_being_made("raw_completions", "abc")


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="disk is full"), Store(tmp_path).reporting_full_disk("raw_completions"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), Store(tmp_path).reporting_full_disk("raw_completions"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_disk_that_is_full_from_the_start_is_not_reported_as_unwritable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(FimError, match="disk is full"), store.making("raw_completions", "abc"):
        pass
    monkeypatch.undo()
    monkeypatch.setattr("fim_core.store.publish.write_owner", full)
    with pytest.raises(FimError, match="disk is full"):
        publish(store)
    assert store.drafts() == []


def test_a_kill_at_any_moment_leaves_whole_versions_only(tmp_path: Path) -> None:
    """A child publishes version after version of many files and is killed; every visible version is complete."""
    child = textwrap.dedent(
        """
        import sys
        from fim_core.store import Store
        store = Store(sys.argv[1])
        for number in range(10_000):
            with store.publish("raw_completions", experiment="e", inputs={}, config={"n": number}, code="1") as draft:
                for name in range(20):
                    (draft.path / str(name)).write_text(str(number))
            print(number, flush=True)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", child, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    artifacts = Store(tmp_path).versions("raw_completions")
    assert artifacts
    for artifact in artifacts:
        names = {str(name) for name in range(20)}
        texts = {(artifact.path / name).read_text() for name in names}
        assert texts == {str(artifact.manifest["config"]["n"])}
