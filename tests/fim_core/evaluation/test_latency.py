"""The latency in a report: measured as a server completes, shown with its device, and bounded by a rule of the gate."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fim_core.champion.gate import decide
from fim_core.config import Experiment
from fim_core.config.evaluation import EvaluationConfig, GateConfig, GateRule
from fim_core.device import device_name
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import RawRow, editor_states, load_eval_set
from fim_core.evaluation.page import latency_sentence, render_markdown, render_page
from fim_core.evaluation.run import evaluate
from fim_core.folders.report import ReportFolder
from fim_core.pipeline.code_version import source_files
from fim_core.pipeline.report_latency import measure_report_latency
from fim_core.pipeline.stages.evaluation_report import evaluation_report
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer
from fim_core.serving.latency import measure_latency
from tests.fim_core.conftest import Evaluated

P95 = GateRule(metric="latency_p95_ms", rule="at_most", value=1e6)


@pytest.fixture(scope="module")
def report(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latency")
    options = evaluated.experiment.evaluation.model_copy(update={"latency_rows": 5})
    experiment = evaluated.experiment.model_copy(update={"evaluation": options})
    evaluate(
        experiment,
        checkpoint=evaluated.checkpoint,
        raw=evaluated.raw,
        prompts=evaluated.prompts,
        dataset=evaluated.dataset,
        output=folder,
        measure_latency=partial(measure_report_latency, experiment, evaluated.checkpoint),
    )
    return folder


class Slow(Completer):
    """Takes at least a known time for each completion, and counts them."""

    seconds = 0.02
    completions = 0

    def fit(self, completion: Completion, *, max_tokens: int):  # type: ignore[no-untyped-def]
        self.completions += 1
        time.sleep(self.seconds * self.completions)
        return super().fit(completion, max_tokens=max_tokens)


def test_figures_are_percentiles_of_cold_completions(evaluated: Evaluated) -> None:
    completer = Slow.load(evaluated.checkpoint)
    states = [Completion(f"SELECT city FROM shop.orders WHERE id = {place}", ";") for place in range(4)]
    start = time.perf_counter()
    found = measure_latency(completer, states, max_tokens=1)
    assert completer.completions == 5, "one is not counted"
    assert completer.computed >= sum(len(completer.prompt_ids(state)) for state in states), "nothing is cached"
    # The waits are 40, 60, 80 and 100 ms.
    p50, p95 = (found["figures"][name] for name in ("latency_p50_ms", "latency_p95_ms"))
    assert p50 >= 70
    assert p95 >= 97
    assert p50 < p95 < 1000 * (time.perf_counter() - start)
    assert (found["rows"], found["max_tokens"], found["device"]) == (4, 1, device_name())


def test_the_report_has_the_latency_of_held_out_rows(report: Path, evaluated: Evaluated) -> None:
    latency = ReportFolder(report).read()["latency"]
    assert set(latency["figures"]) == {"latency_p50_ms", "latency_p95_ms"}
    assert 0 < latency["figures"]["latency_p50_ms"] <= latency["figures"]["latency_p95_ms"]
    assert (latency["rows"], latency["max_tokens"]) == (5, 6)
    found = load_eval_set(evaluated.raw, evaluated.prompts, evaluated.dataset, max_rows=12)
    states = editor_states(found, "<fillMe>", 5)
    held_out = {(row.prefix, row.suffix) for row in found.rows}
    assert len(states) == 5
    assert {(state.prefix, state.suffix) for state in states} <= held_out


@pytest.mark.parametrize(("bound", "holds"), [(1e6, True), (0.001, False)])
def test_the_gate_bounds_it(report: Path, bound: float, holds: bool) -> None:
    rule = P95.model_copy(update={"value": bound})
    decision = decide(report, GateConfig(rules=[GateRule(metric="loss", rule="finite"), rule]), has_champion=False)
    result = next(result for result in decision.results if result.metric == "latency_p95_ms")
    assert result.holds is holds
    assert result.reason.startswith("Latency, p95: ")
    assert f"ms, 5 rows, on {device_name()}. {'Passed' if holds else 'Failed'}: at most " in result.reason
    assert holds or not decision.promote


def test_the_gate_refuses_a_report_without_it(report: Path, tmp_path: Path) -> None:
    found = ReportFolder(report).read()
    del found["latency"]  # as in reports of earlier code
    ReportFolder(tmp_path).report.write_text(json.dumps(found))
    result = decide(tmp_path, GateConfig(rules=[P95]), has_champion=False).results[0]
    assert (result.holds, result.reason) == (
        False,
        "Latency, p95. Failed: the latency was not measured; materialize evaluation_report again.",
    )
    assert latency_sentence(found) == ""
    assert "<h2>Latency</h2>" not in render_page(found)


def test_page_and_markdown_say_where_it_was_measured(report: Path) -> None:
    found = ReportFolder(report).read()
    sentence = latency_sentence(found)
    p95 = found["latency"]["figures"]["latency_p95_ms"]
    assert f"{p95:.3g} ms (p95): wall time on {device_name()}, 5 held-out rows one by one" in sentence
    assert f"<h2>Latency</h2>\n<p>{sentence}</p>" in render_page(found)
    assert "## Latency\n" in render_markdown(found)["report"]


def test_without_an_editor_state_the_evaluation_stops_at_once(evaluated: Evaluated) -> None:
    found = load_eval_set(evaluated.raw, evaluated.prompts, evaluated.dataset, max_rows=2, placeholder="<other>")
    with pytest.raises(FimError, match="No held-out row has the state of an editor"):
        editor_states(found, "<other>")


def test_finished_prompts_take_no_place_in_the_sample(evaluated: Evaluated) -> None:
    found = load_eval_set(evaluated.raw, evaluated.prompts, evaluated.dataset, max_rows=12)
    finished = RawRow("prompt_response", "SELECT 1", "")
    for place, row in enumerate(found.raw):
        raw = [finished] * place + [row] + [finished] * (11 - place)
        [state] = editor_states(replace(found, raw=raw), "<fillMe>", 2)
        assert (state.prefix, state.suffix) == (found.rows[place].prefix, found.rows[place].suffix)


def test_rules_need_the_measurement(evaluated: Evaluated) -> None:
    options = evaluated.experiment.model_dump(mode="json", exclude_unset=True)
    options |= {"gate": {"rules": [P95.model_dump()]}}
    with pytest.raises(
        ValueError, match=r"gate.rules has latency_p95_ms.*set evaluation.latency_rows, for example to 100"
    ):
        Experiment.model_validate(options)
    options["evaluation"]["latency_rows"] = 1
    assert Experiment.model_validate(options).gate.rules == [P95]
    for rule in ("at_least", "finite", "not_worse"):
        with pytest.raises(ValueError, match="latency_p95_ms is measured for the candidate only: use at_most"):
            GateRule(metric="latency_p95_ms", rule=rule, value=1)


def test_code_of_the_server_is_part_of_the_version_only_where_it_is_measured(evaluated: Evaluated) -> None:
    assert not [file for file in source_files(*evaluation_report.code) if "serving" in file.parts]
    plain = evaluated.experiment
    measured = plain.model_copy(update={"evaluation": EvaluationConfig(latency_rows=1)})
    more = measured.model_copy(update={"serving": plain.serving.model_copy(update={"candidates": 2})})
    assert "served" not in evaluation_report.options(plain)
    assert evaluation_report.options(measured)["served"]["code"]
    assert evaluation_report.options(measured) != evaluation_report.options(more)
