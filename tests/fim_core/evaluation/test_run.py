"""The whole evaluation of a small checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from fim_core.errors import FimError
from fim_core.evaluation.generate import Generation
from fim_core.evaluation.predictors import Predictor, cross_entropies
from fim_core.evaluation.prompts import build_tokens, same_prompts
from fim_core.evaluation.report import read_report
from fim_core.evaluation.rows import load_eval_set, most_frequent_completions, sample
from fim_core.evaluation.run import evaluate
from fim_core.modeling.load import build_model
from tests.fim_core.evaluation.conftest import Evaluated, save_checkpoint


def run(evaluated: Evaluated, output: Path, **options) -> dict:
    output.mkdir()
    return evaluate(
        evaluated.experiment,
        checkpoint=evaluated.checkpoint,
        raw=evaluated.raw,
        prompts=evaluated.prompts,
        dataset=evaluated.dataset,
        output=output,
        **options,
    )


@pytest.fixture(scope="module")
def report(evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path_factory) -> Path:
    """A report with a champion of other weights, and the untrained model as a baseline."""
    folder = tmp_path_factory.mktemp("report")
    save_checkpoint(folder / "champion", evaluated.experiment, tokenizer, seed=2)
    untrained = build_model(evaluated.experiment.model, tokenizer, seed=1)
    run(evaluated, folder / "out", champion=folder / "champion", baseline_models={"untrained": untrained})
    return folder / "out"


def test_report_and_predictions_hold_every_row_and_predictor(report: Path, evaluated: Evaluated) -> None:
    figures = read_report(report)
    table = pq.read_table(report / "predictions.parquet").to_pandas()
    assert figures["counts"]["evaluated"] == len(table) == 12
    assert set(figures["baselines"]) == {"empty", "most_frequent", "untrained"}
    assert figures["metrics"]["exact_match"]["value"] == pytest.approx((table.completion == table.prediction).mean())
    assert figures["baselines"]["empty"]["exact_match"]["value"] == pytest.approx((table.completion == "").mean())
    assert table.champion_prediction.notna().all()
    assert {"row_id", "type", "group", "split", "binds", "execution_match", "loss_nats"} <= set(table.columns)
    # The same weights complete and score alike, whether they come from a folder or from memory.
    assert figures["metrics"] == figures["baselines"]["untrained"]
    assert figures["champion"]["differences"]["loss"]["value"] != 0


def test_every_slice_stands_beside_baselines_and_champion(report: Path) -> None:
    figures = read_report(report)
    table = pq.read_table(report / "predictions.parquet").to_pandas()
    assert set(figures["by_type"]) == set(table.type)
    for kind, part in figures["by_type"].items():
        of_kind = table[table.type == kind]
        assert part["rows"] == len(of_kind)
        assert part["metrics"]["edit_similarity"]["value"] == pytest.approx(of_kind.edit_similarity.mean())
        champion = part["champion"]["metrics"]["edit_similarity"]["value"]
        assert champion == pytest.approx(of_kind.champion_edit_similarity.mean())
        assert set(part["baselines"]) == {"empty", "most_frequent", "untrained"}
    assert sum(part["rows"] for part in figures["by_length"].values()) == len(table)


def test_context_reaches_the_measures_that_need_it(report: Path) -> None:
    counts = read_report(report)["counts"]
    assert counts["gold_binds"] == 12, "the DDL of the row's context defines what the gold statement names"
    assert counts["execution"].get("compared", 0) > 0


def test_loss_is_that_of_the_model_row_by_row(report: Path, evaluated: Evaluated) -> None:
    rows = load_eval_set(evaluated.raw, evaluated.prompts, evaluated.dataset, max_rows=12)
    model = AutoModelForCausalLM.from_pretrained(evaluated.checkpoint, dtype=torch.float32)
    nats = []
    for prompt, target in zip(rows.prompts, rows.targets, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        nats.append(torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum").item())
    table = pq.read_table(report / "predictions.parquet").to_pandas()
    np.testing.assert_allclose(table.loss_nats, nats, rtol=1e-4)
    expected = sum(nats) / sum(map(len, rows.targets))
    assert read_report(report)["metrics"]["loss"]["value"] == pytest.approx(expected, rel=1e-4)


def test_tokens_built_anew_are_those_of_the_data_set(evaluated: Evaluated) -> None:
    """A champion with another markup gets its prompts built; with the same markup that changes nothing."""
    rows = load_eval_set(evaluated.raw, evaluated.prompts, evaluated.dataset, max_rows=None)
    predictor = Predictor.load(evaluated.checkpoint)
    built = build_tokens(predictor, rows.raw, [row.completion for row in rows.rows])
    assert built == (rows.prompts, rows.targets)


def test_a_champion_of_another_markup_is_evaluated_in_its_own(
    evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    other = evaluated.experiment.model_copy(
        update={"data": evaluated.experiment.data.model_copy(update={"fim_order": "spm"})}
    )
    save_checkpoint(tmp_path / "champion", other, tokenizer, seed=1)
    run(evaluated, tmp_path / "out", champion=tmp_path / "champion")
    difference = read_report(tmp_path / "out")["champion"]["differences"]["loss"]
    assert difference["value"] != 0, "the same weights, but read in another order"
    assert difference["n"] == 12


def test_which_checkpoints_read_the_same_prompts(evaluated: Evaluated, tmp_path: Path) -> None:
    """What decides is the text of a template, not its name or path."""
    places = [tmp_path / name for name in ("one", "other")]
    for place in places:
        shutil.copytree(evaluated.checkpoint, place)
    assert same_prompts(*places)
    for name, content in (("template.tmpl", "{{.PREFIX}}"), ("chat_template.jinja", "{{ messages }}")):
        (places[0] / name).write_text(content)
        assert not same_prompts(*places)
        (places[1] / name).write_text(content + " ")
        assert not same_prompts(*places)
        (places[1] / name).write_text(content)
        assert same_prompts(*places)
    recipe = json.loads((places[0] / "fim.json").read_text())
    (places[0] / "fim.json").write_text(json.dumps(recipe | {"granularity": "whole"}))
    assert not same_prompts(*places)


def test_vllm_loads_what_has_a_folder_and_nothing_else(
    evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline that is only in memory must not be completed with the weights of the checkpoint's folder."""
    loaded = []

    def generate(model: object, prompts: list, *, backend: str, **options: object) -> list[Generation]:
        loaded.append((backend, model))
        return [Generation([], True) for _ in prompts]

    monkeypatch.setattr("fim_core.evaluation.predictors.generate", generate)
    save_checkpoint(tmp_path / "champion", evaluated.experiment, tokenizer, seed=2)
    untrained = build_model(evaluated.experiment.model, tokenizer, seed=1)
    options = evaluated.experiment.evaluation.model_copy(update={"backend": "vllm"})
    changed = replace(evaluated, experiment=evaluated.experiment.model_copy(update={"evaluation": options}))
    run(changed, tmp_path / "out", champion=tmp_path / "champion", baseline_models={"untrained": untrained})
    assert loaded == [
        ("vllm", evaluated.checkpoint),
        ("transformers", untrained),
        ("vllm", tmp_path / "champion"),
    ]


def test_the_same_evaluation_gives_the_same_bytes(evaluated: Evaluated, tmp_path: Path) -> None:
    for name in ("first", "second"):
        run(evaluated, tmp_path / name)
    for file in ("report.json", "report.html"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_texts_stay_out_of_report_and_page_unless_asked_for(evaluated: Evaluated, tmp_path: Path) -> None:
    for show in (False, True):
        shown = evaluated.experiment.model_copy(
            update={"metadata": evaluated.experiment.metadata.model_copy(update={"show_samples": show})}
        )
        run(
            Evaluated(shown, evaluated.raw, evaluated.prompts, evaluated.dataset, evaluated.checkpoint),
            tmp_path / str(show),
        )
        for file in ("report.json", "report.html"):
            assert ("SELECT id FROM orders" in (tmp_path / str(show) / file).read_text()) == show


def test_sample_depends_on_row_ids_only() -> None:
    names = [f"row-{i}" for i in range(50)]
    chosen = {names[i] for i in sample(names, 10)}
    reversed_names = names[::-1]
    assert {reversed_names[i] for i in sample(reversed_names, 10)} == chosen
    assert sample(names, None) == list(range(50))
    assert sample(names, 10) == sorted(sample(names, 10))


def test_most_frequent_completion_comes_from_training_rows(evaluated: Evaluated) -> None:
    table = pq.read_table(evaluated.prompts / "prompts.parquet").to_pandas()
    train = table[table.split == "train"]
    found = most_frequent_completions(evaluated.prompts)
    assert set(found) == set(train.type)
    for kind, completion in found.items():
        counts = train[train.type == kind].response.value_counts()
        assert counts[completion] == counts.max()


def test_no_held_out_rows_is_one_clear_sentence(evaluated: Evaluated, tmp_path: Path) -> None:
    data = evaluated.experiment.data.model_copy(update={"eval_fraction": 0.0})
    from fim_core.prompts import write_fim_prompts
    from fim_core.tokenization import tokenize_prompts
    from fim_core.tokens import load_tokenizer

    write_fim_prompts(
        evaluated.raw,
        tmp_path / "prompts",
        data=data,
        model=evaluated.experiment.model,
        tokenizer=load_tokenizer(evaluated.checkpoint),
        seed=1,
    )
    tokenize_prompts(tmp_path / "prompts", tmp_path / "dataset", data=data)
    with pytest.raises(FimError, match="eval_fraction"):
        load_eval_set(evaluated.raw, tmp_path / "prompts", tmp_path / "dataset", max_rows=5)


def test_a_loss_that_is_no_number_is_not_finite_in_the_report(
    evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    broken = build_model(evaluated.experiment.model, tokenizer, seed=1)
    with torch.no_grad():
        broken.get_output_embeddings().weight[3] = float("nan")
    run(evaluated, tmp_path / "out", baseline_models={"broken": broken})
    assert json.loads((tmp_path / "out" / "report.json").read_text())["baselines"]["broken"]["loss"]["value"] is None


def test_the_loss_and_its_part_at_the_end_token(evaluated: Evaluated, report: Path) -> None:
    """Against plain transformers, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(evaluated.checkpoint, dtype=torch.float32).eval()
    held_out = load_eval_set(evaluated.raw, evaluated.prompts, evaluated.dataset, max_rows=12)
    assert min(map(len, held_out.targets)) == 1, "one row has an empty completion"
    text, ends, tokens = 0.0, 0.0, 0
    found = cross_entropies(model, held_out.prompts, held_out.targets)
    for row, prompt, target in zip(found, held_out.prompts, held_out.targets, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="none").tolist()
        assert row.nats == pytest.approx(sum(losses), rel=1e-4)
        assert row.end_nats == pytest.approx(losses[-1], rel=1e-4)
        assert row.tokens == len(target)
        text, ends, tokens = text + sum(losses[:-1]), ends + losses[-1], tokens + len(target)
    figures = read_report(report)["metrics"]
    assert figures["loss"]["value"] == pytest.approx((text + ends) / tokens, rel=1e-4)
    assert figures["loss_end"]["value"] == pytest.approx(ends / 12, rel=1e-4)
    assert figures["loss_text"]["value"] == pytest.approx(text / (tokens - 12), rel=1e-4)


def test_cross_entropies_of_no_rows(evaluated: Evaluated) -> None:
    assert cross_entropies(Predictor.load(evaluated.checkpoint).model, [], []) == []
