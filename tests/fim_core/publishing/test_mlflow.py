"""An MLflow registry in SQLite: versions with their files and metrics, and the alias after promotion and rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from champions import MODEL_FILES, experiment, promote
from safetensors.numpy import load_file

from fim_core.champion.registry import champion, roll_back
from fim_core.errors import FimError
from fim_core.publishing.publish import publish_champion
from fim_core.store import Store

pytestmark = pytest.mark.usefixtures("mlflow")


@pytest.fixture(scope="module")
def mlflow() -> Any:
    """The package, imported only where these tests run."""
    return pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: pip install -e '.[mlflow]'")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/registry.db"


@pytest.fixture
def client(mlflow: Any, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the registry. Files of runs go below the current folder, since SQLite names no other place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def target(uri: str, model: str) -> dict[str, str]:
    return {"type": "mlflow", "tracking_uri": uri, "model": model}


def weights_at(client: Any, model: str, tmp_path: Path) -> tuple[str, float]:
    """The version that the alias is on, and the number in the weights that it leads to."""
    from mlflow.artifacts import download_artifacts

    version = client.get_model_version_by_alias(model, "champion")
    folder = download_artifacts(f"models:/{model}@champion", dst_path=str(tmp_path / f"v{version.version}"))
    assert {path.name for path in Path(folder).iterdir()} == MODEL_FILES
    return str(version.version), float(load_file(Path(folder) / "model.safetensors")["weight"][0])


def test_the_alias_follows_promotion_and_rollback(client: Any, tmp_path: Path) -> None:
    # The server is that of MLFLOW_TRACKING_URI.
    options = experiment(tmp_path, {"type": "mlflow", "model": "orders"})
    store = Store(options.storage)
    events: list[dict[str, Any]] = []
    for number in (1, 2):
        promote(store, number)
        publish_champion(options, store, events.append)
        assert weights_at(client, "orders", tmp_path) == (str(number), number)
    roll_back(store, "tiny")
    for _ in range(2):
        publish_champion(options, store, events.append)
    assert [event["changed"] for event in events] == [True, True, True, False]
    assert weights_at(client, "orders", tmp_path) == ("1", 1)
    versions = client.search_model_versions("name='orders'")
    assert len(versions) == 2, "the rollback made no version"
    runs = {version.version: client.get_run(version.run_id) for version in versions}
    assert {run.data.metrics["exact_match"] for run in runs.values()} == {0.1, 0.2}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_an_interrupted_publication_is_repeated(
    client: Any, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = experiment(tmp_path, target(uri, "interrupted"))
    store = Store(options.storage)
    made = promote(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(client), "create_model_version", lambda *_, **__: 1 / 0)
        with pytest.raises(FimError, match=r"is the champion of tiny, but .*`fim champion publish`"):
            publish_champion(options, store)
    assert champion(store, "tiny") == made
    publish_champion(options, store)
    assert weights_at(client, "interrupted", tmp_path) == ("1", 1)


def test_models_of_others_are_not_taken(client: Any, uri: str, tmp_path: Path) -> None:
    mine, other = (experiment(tmp_path, target(uri, "shared"), name=name) for name in ("tiny", "other"))
    store = Store(mine.storage)
    promote(store, 1)
    promote(store, 2, name="other")
    publish_champion(mine, store)
    with pytest.raises(FimError, match="registered model shared belongs to experiment tiny"):
        publish_champion(other, store)
    assert weights_at(client, "shared", tmp_path) == ("1", 1)


def test_a_registry_that_is_not_named_or_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    options = experiment(tmp_path, {"type": "mlflow"})
    store = Store(options.storage)
    promote(store, 1)
    with pytest.raises(FimError, match=r"no MLflow server to publish to\. Set `tracking_uri`"):
        publish_champion(options, store)
    options = experiment(tmp_path, target("http://127.0.0.1:9", "orders"))
    with pytest.raises(FimError, match="MLflow does not accept the model orders"):
        publish_champion(options, store)
