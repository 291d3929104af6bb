"""The complete evaluation of a small checkpoint."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fim_core.batch_cache import BatchCache
from fim_core.config import ModelConfig
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.evaluation.base_model import Base, load_base
from fim_core.evaluation.checkpoint_prompts import build_tokens, same_prompts
from fim_core.evaluation.eval_set import MostFrequent, load_eval_set, most_frequent_in_training, sample
from fim_core.evaluation.page import write_page
from fim_core.evaluation.predictors import Predictor, cross_entropies
from fim_core.evaluation.run import evaluate
from fim_core.folders.report import ReportFolder
from fim_core.inference.generation import Generation
from fim_core.inference.generation import generate as real_generate
from fim_core.modeling.load import build_model
from fim_core.modeling.save import save_model
from fim_core.prompt_format.recipe import read_recipe, write_recipe
from fim_core.prompt_format.tokens import control_ids, load_tokenizer
from fim_core.prompts import PromptBuilder
from tests.fim_core.conftest import Evaluated, save_checkpoint


def run(evaluated: Evaluated, output: Path, **options) -> dict:
    output.mkdir()
    headline = evaluate(
        evaluated.experiment,
        checkpoint=evaluated.checkpoint,
        raw=evaluated.raw,
        prompts=evaluated.prompts,
        dataset=evaluated.dataset,
        output=output,
        **options,
    )
    write_page(output)
    return headline


def base_of(evaluated: Evaluated, *, seed: int = 1, kept: BatchCache | None = None) -> Base:
    """The model of the checkpoint's experiment before training; with seed 1, the checkpoint's own weights."""
    return Base(lambda: load_base(evaluated.experiment.model, evaluated.checkpoint, seed=seed), kept)


@pytest.fixture(scope="module")
def report(evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path_factory) -> Path:
    """A report with a champion of other weights, and a base of the same weights."""
    folder = tmp_path_factory.mktemp("report")
    save_checkpoint(folder / "champion", evaluated.experiment, tokenizer, seed=2)
    run(evaluated, folder / "out", champion=folder / "champion", base=base_of(evaluated))
    return folder / "out"


def test_report_and_predictions_hold_every_row_and_predictor(report: Path, evaluated: Evaluated) -> None:
    figures = ReportFolder(report).read()
    table = pq.read_table(report / "predictions.parquet").to_pandas()
    assert figures["counts"]["evaluated"] == len(table) == 12
    assert set(figures["others"]) == {"empty", "most_frequent", "most_frequent_by_type", "base", "champion"}
    assert figures["metrics"]["exact_match"]["value"] == pytest.approx((table.completion == table.prediction).mean())
    assert figures["others"]["empty"]["metrics"]["exact_match"]["value"] == pytest.approx(
        (table.completion == "").mean()
    )
    assert table.champion_prediction.notna().all()
    assert (table.base_prediction == table.prediction).all()
    assert {"row_id", "type", "group", "split", "binds", "execution_match", "loss_nats"} <= set(table.columns)
    # The same weights complete and score alike, whether they come from a folder or from memory.
    served_only = {"shown_precision", "coverage", "correct_hidden", "wrong_hidden"}
    assert {n: f for n, f in figures["metrics"].items() if n not in served_only} == figures["others"]["base"]["metrics"]
    differences = figures["others"]["base"]["differences"]
    assert {found["value"] for found in differences.values()} == {0.0}
    assert figures["others"]["champion"]["differences"]["loss"]["value"] != 0
    for other in figures["others"].values():
        for name, difference in other["differences"].items():
            ours, theirs = figures["metrics"][name], other["metrics"][name]
            assert difference["value"] == pytest.approx(ours["value"] - theirs["value"])
            assert difference["n"] == ours["n"]


def test_a_champions_filter_of_another_version_leaves_out_what_it_shows(
    evaluated: Evaluated, report: Path, tmp_path: Path
) -> None:
    champion = tmp_path / "champion"
    shutil.copytree(report.parent / "champion", champion)
    (champion / "completion_filter.json").write_text(
        '{"weights": {}, "bias": 0.0, "threshold": 0.5, "dialect": "duckdb"}'
    )
    run(evaluated, tmp_path / "out", champion=champion)
    metrics = ReportFolder(tmp_path / "out").read()["others"]["champion"]["metrics"]
    assert "coverage" not in metrics
    assert "coverage" in ReportFolder(report).read()["others"]["champion"]["metrics"]


def test_every_slice_holds_all_predictors(report: Path) -> None:
    figures = ReportFolder(report).read()
    table = pq.read_table(report / "predictions.parquet").to_pandas()
    assert set(figures["by_type"]) == set(table.type)
    for kind, part in figures["by_type"].items():
        of_kind = table[table.type == kind]
        assert part["rows"] == len(of_kind)
        assert part["metrics"]["edit_similarity"]["value"] == pytest.approx(of_kind.edit_similarity.mean())
        champion = part["others"]["champion"]["metrics"]["edit_similarity"]["value"]
        assert champion == pytest.approx(of_kind.champion_edit_similarity.mean())
        assert set(part["others"]) == set(figures["others"])
    assert sum(part["rows"] for part in figures["by_length"].values()) == len(table)


def test_context_reaches_the_measures_that_need_it(report: Path) -> None:
    counts = ReportFolder(report).read()["counts"]
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
    assert ReportFolder(report).read()["metrics"]["loss"]["value"] == pytest.approx(expected, rel=1e-4)


def test_rebuilt_tokens_equal_those_of_the_dataset(evaluated: Evaluated) -> None:
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
    difference = ReportFolder(tmp_path / "out").read()["others"]["champion"]["differences"]["loss"]
    assert difference["value"] != 0, "the same weights, but read in another order"
    assert difference["n"] == 12


def test_which_checkpoints_read_the_same_prompts(evaluated: Evaluated, tmp_path: Path) -> None:
    """What decides is the text of a template, not its name or path."""
    places = [tmp_path / name for name in ("one", "other")]
    for place in places:
        shutil.copytree(evaluated.checkpoint, place)
    assert same_prompts(*places)
    chat_template = places[0] / "chat_template.jinja"
    before = chat_template.read_text()
    chat_template.write_text("{{ messages }}")
    assert not same_prompts(*places)
    chat_template.write_text(before)
    recipe = read_recipe(places[0])
    cut = "segment" if recipe.granularity == "line" else "line"
    for other in ({"template_text": recipe.template_text + " "}, {"granularity": cut}, {"fim_order": "spm"}):
        write_recipe(places[0], replace(recipe, **other))
        assert not same_prompts(*places), other
    write_recipe(places[0], replace(recipe, template="of another name"))
    assert same_prompts(*places)


def test_vllm_runs_only_models_that_have_a_folder(
    evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that is only in memory must not be completed with the weights of the checkpoint's folder."""
    loaded = []

    def generate(model: object, prompts: list, *, backend: str, **options: object) -> list[Generation]:
        loaded.append((backend, model))
        return [Generation([], True) for _ in prompts]

    monkeypatch.setattr("fim_core.evaluation.predictors.generate", generate)
    save_checkpoint(tmp_path / "champion", evaluated.experiment, tokenizer, seed=2)
    before = load_base(evaluated.experiment.model, evaluated.checkpoint, seed=1)
    options = evaluated.experiment.evaluation.model_copy(update={"backend": "vllm"})
    changed = replace(evaluated, experiment=evaluated.experiment.model_copy(update={"evaluation": options}))
    run(changed, tmp_path / "out", champion=tmp_path / "champion", base=Base(lambda: before))
    assert loaded == [
        ("vllm", evaluated.checkpoint),
        ("transformers", before.model),
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


def test_most_frequent_completions_come_from_training_rows(evaluated: Evaluated) -> None:
    table = pq.read_table(evaluated.prompts / "prompts.parquet").to_pandas()
    train = table[table.split == "train"]
    found = most_frequent_in_training(evaluated.prompts)
    assert set(found.by_type) == set(train.type)
    for kind, completion in found.by_type.items():
        counts = train[train.type == kind].response.value_counts()
        assert counts[completion] == counts.max()
    overall = train.response.value_counts()
    assert overall[found.overall] == overall.max()


def test_the_most_frequent_completion_of_all_is_not_that_of_a_type() -> None:
    found = MostFrequent.of([("a", "x", 3), ("b", "y", 2), ("b", "x", 1), ("c", "y", 2), ("c", "w", 2)])
    assert (found.overall, found.by_type) == ("x", {"a": "x", "b": "y", "c": "w"}), "equal counts go by text"
    assert MostFrequent.of([]) == MostFrequent("", {})


def test_no_held_out_rows_is_a_clear_error(evaluated: Evaluated, tmp_path: Path) -> None:
    data = evaluated.experiment.data.model_copy(update={"eval_fraction": 0.0})
    from fim_core.prompt_format.tokens import load_tokenizer
    from fim_core.prompts import write_fim_prompts
    from fim_core.tokenization import tokenize_prompts

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


def test_too_long_rows_do_not_count_as_held_out(evaluated: Evaluated, tmp_path: Path) -> None:
    from fim_core.tokenization import tokenize_prompts

    lengths = [len(ids) for ids in load_from_disk(str(evaluated.dataset / "dataset"))["eval"]["input_ids"]]
    data = evaluated.experiment.data.model_copy(update={"max_length": max(lengths) - 1})
    tokenize_prompts(evaluated.prompts, tmp_path / "dataset", data=data)
    found = load_eval_set(evaluated.raw, evaluated.prompts, tmp_path / "dataset", max_rows=None)
    assert found.held_out == len(found.rows) < len(lengths)


def test_a_nan_loss_is_not_finite_in_the_report(evaluated: Evaluated, tmp_path: Path) -> None:
    broken = load_base(evaluated.experiment.model, evaluated.checkpoint, seed=1)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[3] = float("nan")
    run(evaluated, tmp_path / "out", base=Base(lambda: broken))
    report = ReportFolder(tmp_path / "out").read()
    assert report["others"]["base"]["metrics"]["loss"]["value"] is None
    assert report["others"]["base"]["differences"]["loss"]["value"] is None


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call to generate continues."""
    counted: list[int] = []

    def generate(model: object, prompts: list, **options: object) -> list[Generation]:
        counted.append(len(prompts))
        return real_generate(model, prompts, **options)

    monkeypatch.setattr("fim_core.evaluation.predictors.generate", generate)
    return counted


def test_predictions_of_the_base_are_cached(evaluated: Evaluated, tmp_path: Path, generations: list[int]) -> None:
    kept = BatchCache(tmp_path / "cache", "base")
    base = base_of(evaluated, seed=2, kept=kept)
    run(evaluated, tmp_path / "first", base=base)
    assert generations == [12, 12], "the candidate and the base"
    generations.clear()

    def refuse() -> Predictor:
        raise AssertionError("the base is not even loaded")

    run(evaluated, tmp_path / "second", base=Base(refuse, kept))
    assert generations == [12], "the candidate only"
    assert ReportFolder(tmp_path / "second").read() == ReportFolder(tmp_path / "first").read()


@pytest.mark.parametrize("change", ["rows", "max_new_tokens", "tokenizer.json", "generation_config.json", "weights"])
def test_predictions_of_the_base_depend_on_every_part_of_the_cache_key(
    evaluated: Evaluated, tmp_path: Path, generations: list[int], change: str
) -> None:
    kept = BatchCache(tmp_path / "cache", "base")
    run(evaluated, tmp_path / "first", base=base_of(evaluated, kept=kept))
    generations.clear()
    changed, options = evaluated, evaluated.experiment.evaluation
    if change == "rows":
        options = options.model_copy(update={"max_rows": 11})
    elif change == "max_new_tokens":
        options = options.model_copy(update={"max_new_tokens": 5})
    elif change == "weights":
        kept = replace(kept, identity="other base")
    else:
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(evaluated.checkpoint, checkpoint)
        content = json.loads((checkpoint / change).read_text())
        (checkpoint / change).write_text(json.dumps(content, indent=7))
        changed = replace(changed, checkpoint=checkpoint)
    changed = replace(changed, experiment=evaluated.experiment.model_copy(update={"evaluation": options}))
    run(changed, tmp_path / "second", base=base_of(changed, kept=kept))
    assert len(generations) == 2


def test_one_model_is_in_memory_at_a_time(
    evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "champion", evaluated.experiment, tokenizer, seed=2)
    alive: list[weakref.ref] = []
    others_alive: list[int] = []

    def generate(model: PreTrainedModel, prompts: list, **options: object) -> list[Generation]:
        others_alive.append(sum(other() is not None for other in alive))
        alive.append(weakref.ref(model))
        return real_generate(model, prompts, **options)

    monkeypatch.setattr("fim_core.evaluation.predictors.generate", generate)
    run(evaluated, tmp_path / "out", champion=tmp_path / "champion", base=base_of(evaluated))
    assert others_alive == [0, 0, 0]


def test_a_base_that_cannot_be_loaded_is_reported(evaluated: Evaluated, tmp_path: Path) -> None:
    def gone() -> Predictor:
        raise FimError("There is no model folder /gone.")

    run(evaluated, tmp_path / "out", base=Base(gone, BatchCache(tmp_path / "cache", "gone")))
    report = ReportFolder(tmp_path / "out").read()
    assert report["unavailable"] == {"base": "There is no model folder /gone."}
    assert "base" not in report["others"]
    assert "There is no model folder /gone." in (tmp_path / "out" / "report.html").read_text()
    run(evaluated, tmp_path / "back", base=base_of(evaluated, kept=BatchCache(tmp_path / "cache", "gone")))
    assert "base" in ReportFolder(tmp_path / "back").read()["others"], "a failure is not kept"


def test_a_pretrained_base_is_the_model_that_training_starts_from(evaluated: Evaluated, tmp_path: Path) -> None:
    """With FIM tokens that its tokenizer lacks: the embeddings grow as in training, and adapters are left out."""
    plain = train_tokenizer(["SELECT id FROM orders WHERE total > 1 AND city = 'rome';"] * 8, vocab_size=560)
    place = tmp_path / "pretrained"
    save_model(build_model(evaluated.experiment.model, plain, seed=4), plain, [plain.eos_token_id], place)
    names = {"prefix": "<PRE>", "suffix": "<SUF>", "middle": "<MID>"}
    model = ModelConfig.model_validate(
        {"name_or_path": str(place), "fim_tokens": names, "peft_config": {"r": 2}, "dtype": "fp32"}
    )
    experiment = evaluated.experiment.model_copy(update={"model": model})
    grown = load_tokenizer(place)
    recipe = PromptBuilder(grown, model, evaluated.experiment.data).recipe
    tokens = recipe.fim_tokens
    trained = build_model(model, grown, seed=0, new_token_ids=[tokens.prefix_id, tokens.suffix_id, tokens.middle_id])
    checkpoint = tmp_path / "checkpoint"
    save_model(trained, grown, tokens.end_ids, checkpoint)
    write_recipe(checkpoint, recipe)
    base = load_base(experiment.model, checkpoint, seed=0)
    wanted = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    found = base.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted), "an adapter begins at no change"
    assert len(found["model.embed_tokens.weight"]) == len(plain) + 3
    assert base.stop_ids == {*tokens.end_ids, *control_ids(grown)}


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
    figures = ReportFolder(report).read()["metrics"]
    assert figures["loss"]["value"] == pytest.approx((text + ends) / tokens, rel=1e-4)
    assert figures["loss_end"]["value"] == pytest.approx(ends / 12, rel=1e-4)
    assert figures["loss_text"]["value"] == pytest.approx(text / (tokens - 12), rel=1e-4)


def test_cross_entropies_of_no_rows(evaluated: Evaluated) -> None:
    assert cross_entropies(Predictor.load(evaluated.checkpoint).model, [], []) == []
