"""The component `fim_assets.FimPipeline`: its YAML, its scaffold, and several instances in one code location."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.resolved.errors import ResolutionException
from dagster.components.testing import DefsFolderSandbox, create_defs_folder_sandbox
from pydantic import ValidationError
from tiny_pipeline import TINY, write_experiment

from fim_assets import FimPipeline
from fim_assets.component import definitions_of
from fim_assets.instance import EXPERIMENT_TAG, PipelineInstance
from fim_core.pipeline import STAGES
from fim_core.quality.run import load_checks
from fim_core.store import Store

JOBS = {"prepare_data", "train", "evaluate_only", "retrain"}


def add(sandbox: DefsFolderSandbox, name: str, folder: Path, **attributes: Any) -> None:
    """An instance for a tiny experiment of this name; all instances use the store in `folder`."""
    place = sandbox.scaffold_component(FimPipeline, defs_path=Path("fim") / name)
    experiment = {**TINY, "name": name, "storage": str(folder / "store")}
    (place / f"{name}.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    content = yaml.safe_load((place / "defs.yaml").read_text())
    content["attributes"] |= attributes
    (place / "defs.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_two_instances_share_nothing_but_the_pool(tmp_path: Path) -> None:
    with create_defs_folder_sandbox() as sandbox:
        add(sandbox, "orders", tmp_path)
        add(sandbox, "billing", tmp_path, key_prefix="teams/billing")
        with sandbox.build_all_defs() as defs:
            repository = defs.get_repository_def()
            prefixes = {"orders": ["orders"], "billing": ["teams", "billing"]}
            for prefix in prefixes.values():
                named = "_".join(prefix)
                assert {f"{named}_{job}" for job in JOBS} <= set(repository.job_names)
                for stage in STAGES:
                    node = repository.asset_graph.get(dg.AssetKey([*prefix, stage.asset]))
                    assert node.parent_keys == {dg.AssetKey([*prefix, asset]) for asset in stage.upstream}
                    assert node.group_name == named
                    assert {key.name for key in node.check_keys} == {check.name for check in load_checks(stage.asset)}
                    assert node.pools == (
                        {"gpu"} if stage.asset in {"trained_checkpoint", "evaluation_report"} else set()
                    )
            assert {s.name for s in repository.schedule_defs} == {"orders_retraining", "teams_billing_retraining"}
            sensors = {sensor.name for sensor in repository.sensor_defs}
            assert {"orders_exports", "orders_run_failures", "teams_billing_exports"} <= sensors
            assert repository.get_job("orders_retrain").tags[EXPERIMENT_TAG] == "orders"
            assert len(repository.asset_graph.get_all_asset_keys()) == 2 * len(STAGES)


def test_runs_of_two_instances_are_filed_apart(tmp_path: Path) -> None:
    with create_defs_folder_sandbox() as sandbox, dg.DagsterInstance.ephemeral() as dagster:
        for name in ("orders", "billing"):
            add(sandbox, name, tmp_path)
        with sandbox.build_all_defs() as defs:
            asset = dg.AssetKey(["orders", "raw_completions"])
            job = defs.resolve_implicit_global_asset_job_def()
            both = [asset, dg.AssetKey(["billing", "raw_completions"])]
            for selection in ([asset], both):
                result = job.execute_in_process(instance=dagster, asset_selection=selection)
                tags = dagster.get_run_by_id(result.run_id).tags
                assert tags[EXPERIMENT_TAG] == ("orders" if selection == [asset] else "billing, orders")
    store = Store(tmp_path / "store")
    assert store.current("raw_completions", "orders").version == store.current("raw_completions", "billing").version


def run_raw(instance: PipelineInstance, dagster: dg.DagsterInstance, path: Path) -> dg.ExecuteInProcessResult:
    """Read the exports with the experiment file `path` chosen in the launchpad."""
    job = definitions_of(instance).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=dagster,
        asset_selection=[instance.key("raw_completions")],
        run_config={"resources": {"experiment": {"config": {"path": str(path)}}}},
        raise_on_error=False,
    )


def test_another_experiment_in_the_launchpad_is_refused_and_a_copy_of_the_same_is_not(tmp_path: Path) -> None:
    other, copy = tmp_path / "other", tmp_path / "copy"
    for folder in (other, copy):
        folder.mkdir()
    own = write_experiment(tmp_path)
    instance = PipelineInstance(str(own))
    with dg.DagsterInstance.ephemeral() as dagster:
        assert run_raw(instance, dagster, own).success
        assert run_raw(instance, dagster, write_experiment(copy, storage=str(tmp_path / "store"))).success
        refused = run_raw(instance, dagster, write_experiment(other, name="other"))
        assert not refused.success
        said = refused.failure_data_for_node("raw_completions").user_failure_data.description
        assert "belong to the experiment tiny" in said
        assert "dg scaffold defs fim_assets.FimPipeline" in said
        assert not (other / "store").exists()


def test_another_experiment_by_environment_runs_with_a_warning(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with dg.DagsterInstance.ephemeral() as dagster:
        for path in (write_experiment(tmp_path), write_experiment(other, name="other")):
            result = run_raw(PipelineInstance(str(path)), dagster, path)
            assert result.success
        logs = [entry.user_message for entry in dagster.all_logs(result.run_id)]
    assert any("last materialization of this asset was of the experiment tiny" in line for line in logs)


def test_the_launcher_of_the_component_replaces_that_of_the_file(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, launcher={"num_processes": 2})
    attributes = {"experiment": str(path), "launcher": {"type": "ray", "address": "http://head:8265"}}
    component = FimPipeline.from_attributes_dict(attributes=attributes)
    used = PipelineInstance(str(path), launcher=component.launcher).read().experiment.launcher
    assert used.model_dump(include={"type", "address", "num_processes"}) == {
        "type": "ray",
        "address": "http://head:8265",
        "num_processes": None,
    }


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"launcher": {"type": "ray", "adress": "x"}}, "launcher.ray.adress: Extra inputs"),
        ({"launcher": {"type": "rey"}}, "launcher: `type` is one of"),
        ({"key_prefix": "a b"}, "key_prefix 'a b'"),
        ({"key_prefix": "a//b"}, "key_prefix 'a//b'"),
        ({"group": "x"}, "group"),
    ],
)
def test_mistakes_are_reported_when_the_definitions_load(attributes: dict[str, Any], said: str) -> None:
    with pytest.raises((ResolutionException, ValidationError), match=re.escape(said)):
        FimPipeline.from_attributes_dict(attributes={"experiment": "orders.yaml", **attributes})


def test_an_instance_with_a_broken_file_loads(tmp_path: Path) -> None:
    """One team's mistake does not take down the other teams' code location."""
    (tmp_path / "orders.yaml").write_text("modle: 1\n")
    for name in ("orders.yaml", "missing.yaml"):
        definitions_of(PipelineInstance(str(tmp_path / name), (Path(name).stem,))).get_repository_def()


def test_the_scaffolded_experiment_is_valid_and_named_after_its_folder() -> None:
    with create_defs_folder_sandbox() as sandbox:
        place = sandbox.scaffold_component(FimPipeline, defs_path="orders-eu")
        attributes = yaml.safe_load((place / "defs.yaml").read_text())["attributes"]
        assert attributes == {"experiment": "orders-eu.yaml", "key_prefix": "orders_eu"}
        experiment = PipelineInstance(str(place / "orders-eu.yaml")).read().experiment
        assert experiment.name == "orders-eu"


def test_the_scaffold_takes_an_existing_experiment(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    with create_defs_folder_sandbox() as sandbox:
        place = sandbox.scaffold_component(
            FimPipeline, defs_path="orders", scaffold_params={"experiment": str(path), "key_prefix": "teams/orders"}
        )
        attributes = yaml.safe_load((place / "defs.yaml").read_text())["attributes"]
        assert (place / attributes["experiment"]).resolve() == path
        assert attributes["key_prefix"] == "teams/orders"
        assert [file.name for file in place.iterdir()] == ["defs.yaml"]


def test_the_schema_that_editors_use_describes_every_attribute() -> None:
    schema = json.loads(json.dumps(FimPipeline.get_model_cls().model_json_schema()))
    assert set(schema["properties"]) == {"experiment", "key_prefix", "group_name", "pool", "launcher"}
    assert all("description" in attribute for attribute in schema["properties"].values())
