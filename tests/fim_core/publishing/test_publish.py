"""Champions published to folders and buckets: whole, never lost, and back again after a rollback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from champions import MODEL_FILES, experiment, promote
from object_server import SECRET, Bucket
from safetensors.numpy import load, load_file
from typer.testing import CliRunner

from fim_core.champion.registry import champion, champion_weights, roll_back
from fim_core.cli.main import app
from fim_core.config import Experiment
from fim_core.errors import DamagedFile, FimError
from fim_core.object_storage.filesystem import open_filesystem
from fim_core.pipeline.preflight import preflight
from fim_core.publishing.publish import planned, publish_champion
from fim_core.publishing.release import release_of
from fim_core.store import Store


@dataclass(frozen=True)
class Target:
    """A place to publish to, and its files: all names, and the bytes of one."""

    place: str
    names: Callable[[], set[str]]
    read: Callable[[str], bytes]


@pytest.fixture(params=["folder", "bucket"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "folder":
        folder = tmp_path / "models"
        files = lambda: {p for p in folder.rglob("*") if p.is_file() and not p.is_relative_to(folder / "champion")}  # noqa: E731
        return Target(
            str(folder),
            lambda: {path.relative_to(folder).as_posix() for path in files()},
            lambda name: (folder / name).read_bytes(),
        )
    bucket: Bucket = request.getfixturevalue("bucket")
    return Target(
        f"{bucket.url}/models",
        lambda: {key.removeprefix("models/") for key in bucket.list_keys()},
        lambda name: bucket.get(f"models/{name}"),
    )


def number_of(target: Target) -> float:
    """The number in the weights that the record leads to."""
    record = json.loads(target.read("champion.json"))
    return float(load(target.read(f"{record['folder']}/model.safetensors"))["weight"][0])


def publish(options: Experiment) -> list[tuple[str, bool]]:
    events: list[dict[str, Any]] = []
    publish_champion(options, Store(options.storage), events.append)
    return [(event["place"], event["changed"]) for event in events]


def test_the_model_and_a_record_are_published_once(target: Target, tmp_path: Path) -> None:
    options = experiment(tmp_path, target.place)
    store = Store(options.storage)
    made = promote(store, 3)
    assert publish(options) == [(target.place, True)]
    record = json.loads(target.read("champion.json"))
    assert target.names() == {"champion.json", *(f"{record['folder']}/{name}" for name in MODEL_FILES)}
    for name in MODEL_FILES:
        content = target.read(f"{record['folder']}/{name}")
        assert content == (champion_weights(made) / name).read_bytes()
        assert record["files"][name]["bytes"] == len(content)
    assert (record["experiment"], record["champion"], record["checkpoint"]) == ("tiny", made.version, "c3")
    assert record["metrics"] == {"exact_match": 0.3}
    assert publish(options) == [(target.place, False)]


def test_a_rollback_leads_back_to_the_earlier_model(target: Target, tmp_path: Path) -> None:
    options = experiment(tmp_path, target.place)
    store = Store(options.storage)
    for number in (1, 2):
        promote(store, number)
        publish(options)
        assert number_of(target) == number
    names = target.names()
    roll_back(store, "tiny")
    assert publish(options) == [(target.place, True)]
    assert number_of(target) == 1
    assert target.names() == names, "no model is removed, none is copied twice"


def test_other_weights_of_the_same_version_are_published(target: Target, tmp_path: Path) -> None:
    """`--force` builds a version again, and training need not give the same bytes."""
    options = experiment(tmp_path, target.place)
    store = Store(options.storage)
    first = promote(store, 1)
    publish(options)
    with store.publish(
        "champion_model", experiment="tiny", inputs=first.manifest["inputs"], config={}, code="1", replace=True
    ) as draft:
        from champions import write_model

        draft.counts |= first.counts
        (draft.path / "decision.json").write_text("{}")
        write_model(draft.path / "model" / "tiny", 8)
    assert champion(store, "tiny").version == first.version  # type: ignore[union-attr]
    publish(options)
    assert number_of(target) == 8


def test_a_place_of_another_experiment_is_not_taken(target: Target, tmp_path: Path) -> None:
    mine, other = experiment(tmp_path, target.place), experiment(tmp_path, target.place, name="other")
    store = Store(mine.storage)
    promote(store, 1)
    promote(store, 2, name="other")
    publish(mine)
    names = target.names()
    with pytest.raises(
        FimError, match=r"holds the champion of experiment tiny\. Give each experiment a place of its own"
    ):
        publish(other)
    assert (number_of(target), target.names()) == (1, names)


def test_a_failed_target_loses_nothing_and_the_next_attempt_publishes(bucket: Bucket, tmp_path: Path) -> None:
    options = experiment(tmp_path, "s3://not-there-yet/models", str(tmp_path / "models"))
    store = Store(options.storage)
    made = promote(store, 1)
    with pytest.raises(FimError, match=r"is the champion of tiny, but .* s3://not-there-yet.* `fim champion publish`"):
        publish(options)
    assert champion(store, "tiny") == made
    assert (tmp_path / "models/champion/model.safetensors").is_file(), "the other target got it"
    bucket.client.create_bucket(Bucket="not-there-yet")
    assert publish(options) == [("s3://not-there-yet/models", True), (str(tmp_path / "models"), False)]
    for entry in bucket.client.list_objects_v2(Bucket="not-there-yet")["Contents"]:
        bucket.client.delete_object(Bucket="not-there-yet", Key=entry["Key"])
    bucket.client.delete_bucket(Bucket="not-there-yet")


def test_an_interrupted_upload_leaves_the_old_champion_and_is_continued(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{bucket.url}/models"
    target = Target(place, lambda: set(bucket.list_keys()), lambda name: bucket.get(f"models/{name}"))
    options = experiment(tmp_path, place)
    store = Store(options.storage)
    promote(store, 1)
    publish(options)
    promote(store, 2)
    kind = type(open_filesystem(place))
    put, most = kind._put_file, 2
    uploaded: list[str] = []

    async def dies(self: Any, lpath: str, rpath: str, *arguments: Any, **kwargs: Any) -> None:
        if len(uploaded) == most:
            raise ConnectionError("cut off")
        uploaded.append(rpath)
        await put(self, lpath, rpath, *arguments, **kwargs)

    monkeypatch.setattr(kind, "_put_file", dies)
    with pytest.raises(FimError, match=r"cannot be written \(ConnectionError: cut off\)"):
        publish(options)
    assert number_of(target) == 1
    most = 100
    publish(options)
    assert number_of(target) == 2
    assert sorted(name.rpartition("/")[2] for name in uploaded) == sorted(MODEL_FILES), "each once"


def test_a_folder_has_a_link_that_always_leads_to_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = experiment(tmp_path, str(tmp_path / "models"))
    store = Store(options.storage)
    promote(store, 1)
    publish(options)
    model = tmp_path / "models/champion/model.safetensors"
    promote(store, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(FimError, match="disk is full"):
            publish(options)
    assert load_file(model)["weight"][0] == 1
    assert not [path for path in (tmp_path / "models").iterdir() if path.name.startswith(".")]
    publish(options)
    assert load_file(model)["weight"][0] == 2


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    options = experiment(tmp_path, str(tmp_path / "models"))
    promote(Store(options.storage), 1)
    (tmp_path / "models/champion").mkdir(parents=True)
    with pytest.raises(FimError, match="champion exists and is not a link"):
        publish(options)


def test_only_intact_safetensors_are_published(tmp_path: Path) -> None:
    options = experiment(tmp_path, str(tmp_path / "models"))
    store = Store(options.storage)
    made = promote(store, 1)
    weights = champion_weights(made) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedFile):
        release_of(made, store)
    with store.publish(
        "champion_model", experiment="tiny", inputs=made.manifest["inputs"], config={}, code="2"
    ) as draft:
        draft.counts |= made.counts
        (draft.path / "model/tiny").mkdir(parents=True)
        for name in ("model.safetensors", "pytorch_model.bin"):
            (draft.path / "model/tiny" / name).write_text("x")
    with pytest.raises(FimError, match="another format than safetensors"):
        release_of(store.versions("champion_model")[-1], store)
    assert not (tmp_path / "models").exists()


def test_the_command_publishes_the_champion_and_lists_it_first(bucket: Bucket, tmp_path: Path) -> None:
    options = experiment(tmp_path, f"{bucket.url}/models")
    promote(Store(options.storage), 1)
    path = tmp_path / "tiny.yaml"
    content = options.model_dump(mode="json", include={"name", "storage", "publish"})
    content |= {"model": {"config": {"model_type": "qwen3"}, "tokenizer": {"vocab_size": 700}}}
    path.write_text(yaml.safe_dump({**content, "data": {"sources": [{"type": "demo"}]}}))
    result = CliRunner().invoke(app, ["champion", "publish", str(path), "--dry-run"])
    assert f"{bucket.url}/models: would publish" in result.output
    assert "5 files" in result.output
    assert bucket.list_keys() == []
    result = CliRunner().invoke(app, ["champion", "publish", str(path)])
    assert "is published." in result.output
    assert SECRET not in result.output
    assert "is published already." in CliRunner().invoke(app, ["champion", "publish", str(path)]).output


def test_there_is_nothing_to_publish_without_champion_or_target(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="has no `publish`"):
        planned(experiment(tmp_path), Store(tmp_path / "store"))
    options = experiment(tmp_path, str(tmp_path / "models"))
    with pytest.raises(FimError, match="has no champion to publish"):
        planned(options, Store(options.storage))
    assert publish(options) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("hf://org/name", "use {type: hub"),
        ("ftp://host/models", "ftp:// is not supported"),
        ({"type": "hub", "repo": "name"}, "should match pattern"),
        ({"type": "mlflow", "tracking_uri": "postgresql://me:hunter2@host/db"}, "holds a password"),
        ({"type": "mlflow", "path": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_targets_are_checked_when_the_experiment_is_read(tmp_path: Path, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, target)


def test_missing_packages_are_reported_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fim_core.pipeline import preflight as module

    monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(FimError, match=r"`publish: s3://bucket/models` needs the package s3fs"):
        preflight(experiment(tmp_path, "s3://bucket/models"), trains=False)
