"""Code versions change with code that can change the bytes, and with nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import fim_core
from fim_core.pipeline import STAGES, code_version, stage_of
from fim_core.pipeline.code_version import CANNOT_CHANGE_CONTENT


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of fim_core to change."""
    source = Path(fim_core.__file__).parent
    copy = Path(shutil.copytree(source, tmp_path / "fim_core", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(code_version, "_ROOT", copy)
    code_version.code_version.cache_clear()
    yield copy
    code_version.code_version.cache_clear()


def versions() -> dict[str, str]:
    code_version.code_version.cache_clear()
    return {stage.asset: stage.code_version for stage in STAGES}


def changed_by(file: Path, text: str = "\n\ndef added():\n    return 1\n") -> set[str]:
    """The assets whose version changes when text is appended to a file."""
    before, content = versions(), file.read_text()
    file.write_text(content + text)
    after = versions()
    file.write_text(content)
    return {asset for asset in before if before[asset] != after[asset]}


@pytest.mark.parametrize(
    "place",
    [
        "launchers/progress_bar.py",
        "launchers/local.py",
        "launchers/ray.py",
        "training/trackers.py",
        "training/events.py",
        "inference/row_progress.py",
        "evaluation/page/__init__.py",
        "evaluation/page/report.html.tmpl",
        "pipeline/model_card.py",
        "benchmark/build.py",
        "cli/train.py",
        "config/launchers.py",
        "errors.py",
    ],
)
def test_code_that_cannot_change_the_bytes_changes_no_version(package: Path, place: str) -> None:
    assert changed_by(package / place) == set()


@pytest.mark.parametrize(
    ("place", "asset"),
    [
        ("records/repair.py", "fim_prompts"),
        ("records/parquet_file.py", "raw_completions"),
        ("config/split_expression.py", "raw_completions"),
        ("config/deepspeed.py", "trained_checkpoint"),
        ("records/parse.py", "fim_prompts"),
        ("tokenization/encoder.py", "fim_prompts"),
        ("prompt_format/templates/plain.tmpl", "fim_prompts"),
        ("demo/tokenizer.py", "fim_prompts"),
        ("tokenization/pieces.py", "tokenized_dataset"),
        ("packing/plan.py", "trained_checkpoint"),
        ("modeling/loss.py", "trained_checkpoint"),
        ("modeling/segments.py", "trained_checkpoint"),
        ("training/loop.py", "trained_checkpoint"),
        ("training/lr_schedule.py", "trained_checkpoint"),
        ("training/worker.py", "trained_checkpoint"),
        ("training/export.py", "trained_checkpoint"),
        ("inference/prompting.py", "evaluation_report"),
        ("inference/shared_decoding.py", "evaluation_report"),
        ("metrics/binding.py", "evaluation_report"),
        ("metrics/sql_workers/worker.py", "evaluation_report"),
        ("evaluation/aggregate.py", "evaluation_report"),
        ("champion/gate.py", "champion_model"),
    ],
)
def test_code_that_can_change_the_bytes_changes_the_version(package: Path, place: str, asset: str) -> None:
    assert asset in changed_by(package / place)


def test_a_metric_trains_nothing_again(package: Path) -> None:
    assert changed_by(package / "metrics" / "text.py") == {"evaluation_report", "champion_model"}
    assert changed_by(package / "training" / "steps.py") == {"trained_checkpoint"}


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ('"""Other words."""\n\n# why\ndef f(x):\n    """And here."""\n\n    return (x + 1)\n', True),
        ("def f(x):\n    return x + 2\n", False),
    ],
)
def test_only_behaviour_counts(package: Path, after: str, same: bool) -> None:
    found = []
    for text in ('"""Words."""\ndef f(x):\n    """Add one."""\n    return x + 1\n', after):
        (package / "made_up.py").write_text(text)
        code_version.code_version.cache_clear()
        found.append(code_version.code_version("fim_core.made_up"))
    assert (found[0] == found[1]) is same


def test_imports_are_followed_wherever_they_are(package: Path) -> None:
    (package / "made_up.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fim_core.benchmark import build\n"
        "def f():\n    from fim_core.packing import plan_packs\n"
    )
    code_version.code_version.cache_clear()
    files = {str(file.relative_to(package)) for file in code_version.source_files("fim_core.made_up")}
    assert {"made_up.py", "packing/plan.py", "packing/prefix.py"} <= files
    assert not any(file.startswith(("benchmark", "modeling", "errors")) for file in files)
    assert "packing/batch.py" not in files, "the package's other names are not imported"


def test_the_exceptions_exist_and_have_a_reason() -> None:
    for module, reason in CANNOT_CHANGE_CONTENT.items():
        assert code_version._exists(module)
        assert reason


def test_a_missing_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        code_version.code_version("fim_core.no_such_module")
    assert stage_of("fim_prompts").code == ("fim_core.pipeline.stages.fim_prompts",)
