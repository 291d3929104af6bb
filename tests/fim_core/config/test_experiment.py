"""Validation of experiment files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from fim_core.config import Experiment, load_experiment
from fim_core.config.model import ModelConfig, TrainedTokenizer
from fim_core.config.yaml_file import InvalidYaml, read_yaml
from fim_core.errors import FimError

GUIDE = """
type: sft
micro_batch_size: 1
gradient_accumulation_steps: 6
epochs: 2
activation_checkpoint_cpu_offload: true
model: {type: liger, name_or_path: /models/base, attn_implementation: flash_attention_2}
data:
  sources: [{type: huggingface_instruct, name_or_path: /data/a, role_mapping: {user: messages.role.user}}]
  eval_sources: [{name_or_path: /data/b}]
  num_proc: 16
  max_length: 32768
  cache_dir: /cache
  pack_samples: true
  sample_weighted_loss: true
  ignore_empty_think: true
eval_interval: 150
deepspeed: {zero_optimization: {stage: 3, allgather_bucket_size: 500000000, memory_efficient_linear: true}}
optimizer: {weight_decay: 0.01, learning_rate: 1e-5}
scheduler: {type: huggingface, name: cosine_with_min_lr, warmup_ratio: 0.1, scheduler_specific_kwargs: {min_lr_rate: 0.1}}
checkpoint: [{type: huggingface, save_every_n_steps: 150, save_end_of_training: true, output_dir: /out}]
wandb: {enable: true, project: p, name: n}
logger: {level: WARNING, output_dir: logs, print_output_ranks: [0]}
"""

SMALL = """
model: {name_or_path: m}
data: {sources: [{name_or_path: d.csv}]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tuned.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_in_the_form_of_the_guide_loads(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, GUIDE))
    assert experiment.optimizer.lr == 1e-5
    assert experiment.data.packing == "prefix_tree"
    assert experiment.deepspeed["zero_optimization"]["stage"] == 3
    assert experiment.scheduler.scheduler_specific_kwargs.min_lr_rate == 0.1
    assert experiment.rows_per_step(data_ranks=8) == 1 * 6 * 8


@pytest.mark.parametrize(
    ("options", "on_one_rank", "on_four"),
    [
        ("", 16, 16),
        ("batch_rows: 24", 24, 24),
        ("micro_batch_size: 3", 3, 12),
        ("gradient_accumulation_steps: 5", 5, 20),
        ("micro_batch_size: 3\ngradient_accumulation_steps: 5", 15, 60),
    ],
)
def test_rows_of_an_optimizer_step(tmp_path: Path, options: str, on_one_rank: int, on_four: int) -> None:
    experiment = load_experiment(write(tmp_path, SMALL + options))
    assert (experiment.rows_per_step(1), experiment.rows_per_step(4)) == (on_one_rank, on_four)
    # What a launcher hands to the ranks says the same.
    assert Experiment.model_validate(experiment.model_dump(mode="json")).rows_per_step(4) == on_four


SCRATCH = "{config: {model_type: qwen3}, tokenizer: {vocab_size: 600}}"


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("{name_or_path: m, peft_config: {}}", 2e-4),
        ("{name_or_path: m}", 2e-5),
        (SCRATCH, 1e-3),
    ],
)
@pytest.mark.parametrize("given", ["", "optimizer: {eps: 1e-7}"])
def test_learning_rate_follows_what_is_trained(tmp_path: Path, model: str, rate: float, given: str) -> None:
    text = SMALL.replace("{name_or_path: m}", model) + given
    assert load_experiment(write(tmp_path, text)).optimizer.lr == rate
    stated = load_experiment(write(tmp_path, SMALL.replace("{name_or_path: m}", model) + "optimizer: {lr: 3e-3}"))
    assert stated.optimizer.lr == 3e-3


def test_defaults_that_are_filled_in_are_stated_and_read_back(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, SMALL + "scheduler: {name: constant}"))
    stated = experiment.model_dump(mode="json")
    assert stated["optimizer"]["lr"] == 2e-5
    assert stated["deepspeed"] == {"gradient_clipping": 1.0}
    assert stated["scheduler"]["warmup_ratio"] == 0
    assert load_experiment(write(tmp_path, SMALL)).scheduler.warmup_ratio == 0.05
    assert Experiment.model_validate(stated).model_dump(mode="json") == stated


@pytest.mark.parametrize("norm", ["-1", "true", ".inf", ".nan", "[1]"])
def test_an_invalid_clipping_norm_is_refused(tmp_path: Path, norm: str) -> None:
    with pytest.raises(FimError, match=r"gradient_clipping is|is not a finite number"):
        load_experiment(write(tmp_path, SMALL + f"deepspeed: {{gradient_clipping: {norm}}}"))


@pytest.mark.parametrize("sources", ["d.csv", "[d.csv]", "{name_or_path: d.csv}"])
def test_a_source_may_be_a_path_alone(tmp_path: Path, sources: str) -> None:
    written = load_experiment(write(tmp_path, SMALL.replace("[{name_or_path: d.csv}]", sources)))
    assert written.model_dump() == load_experiment(write(tmp_path, SMALL)).model_dump()


def test_the_name_defaults_to_that_of_the_file(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, SMALL)).name == "tuned"


@pytest.mark.parametrize(("file", "name"), [("my data", "my-data"), (" _a  (2)", "a-2"), ("v1.2_x", "v1.2_x")])
def test_a_file_of_any_name_gives_a_name(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / f"{file}.yaml"
    path.write_text(SMALL)
    assert load_experiment(path).name == name


def test_a_file_name_without_letters_needs_an_explicit_name(tmp_path: Path) -> None:
    path = tmp_path / "(_).yaml"
    path.write_text(SMALL)
    with pytest.raises(FimError, match=r"the file's name cannot be used as the experiment's\. Set `name`"):
        load_experiment(path)
    path.write_text(SMALL + "name: mine")
    assert load_experiment(path).name == "mine"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("epoch: 3", "epoch: no such option; did you mean epochs?"),
        ("schedule: {cron: '0 3 * * 0'}", "schedule: this section is called `retraining` now; the learning rate's is"),
        ("epochs: 0", "epochs: "),
        ("batch_rows: 8\nmicro_batch_size: 2", "batch_rows and micro_batch_size both set the rows"),
        (
            "batch_rows: 8\nmicro_batch_size: 2\ngradient_accumulation_steps: 4",
            "batch_rows and micro_batch_size and gradient_accumulation_steps both set",
        ),
        ("deepspeed: {optimizer: {type: Adam}}", "is set by `optimizer`"),
        ("eval_interval: 10\nloss: {label_smoothing: 1.5}", "loss.label_smoothing"),
        (
            "scheduler: {name: cosine, scheduler_specific_kwargs: {min_lr: 1e-6}}",
            "min_lr is not an argument of the schedule cosine",
        ),
        (
            "optimizer: {lr: 2e-5}\nscheduler: {name: cosine_with_min_lr, scheduler_specific_kwargs: {min_lr: 1e-4}}",
            "min_lr is 0.0001; it must be below the peak learning rate, optimizer.lr 2e-05",
        ),
        (
            "optimizer: {lr: 2e-5}\nscheduler: {name: polynomial, scheduler_specific_kwargs: {lr_end: 2e-5}}",
            "lr_end is 2e-05; it must be below",
        ),
        ("optimizer: {lr: 1e-8}\nscheduler: {name: polynomial}", "lr_end is 1e-07; it must be below"),
        ("max_steps: 0^-1", "max_steps: "),
        (
            "checks: {exact_duplicate: {severity: off}}",
            "no such check: exact_duplicate; did you mean exact_duplicates?",
        ),
        ("evaluation: {dialect: snowflak}", "evaluation.dialect: Unknown dialect 'snowflak'"),
        (
            "gate: {rules: [{metric: exact_mtch, rule: finite}]}",
            "no such metric: exact_mtch; did you mean exact_match?",
        ),
        ("gate: {rules: [{metric: loss, rule: at_most}]}", "gate.rules.0: at_most needs `value`"),
        ("scheduler: {name: constant, warmup_ratio: 0.1}", "constant_with_warmup"),
        ("deepspeed: {zero_optimisation: {stage: 2}}", "`zero_optimisation` is not passed to DeepSpeed; did you mean"),
        ("deepspeed: {gradient_allreduce_op: sum}", "`gradient_allreduce_op` is not passed"),
        ("deepspeed: {zero_optimization: 2}", "`zero_optimization` is a section"),
        ("deepspeed: {zero_optimization: {stage: 4}}", "zero_optimization.stage is 4"),
        ("deepspeed: {zero_optimization: {stage: 0, offload_optimizer: {device: cpu}}}", "needs stage 1, 2 or 3"),
        ("optimizer: {type: cpu_adam}", "offload_optimizer"),
        ("checkpoint: {type: deepspeed, save_end_of_training: false}", "saves nothing"),
        ("checkpoint: {save_every_n_steps: 5, save_end_of_training: false}", "the final model is always saved"),
        ("launcher: {type: hostfile}", "backend pdsh needs a hostfile"),
        ("launcher: {hostfile: hosts}", "launcher.local.hostfile: no such option here"),
        ("launcher: {type: ray, image: fim}", "launcher.ray.image: no such option here"),
        ("launcher: {type: kubernetes, image: fim}", "launcher.kubernetes.volume_claim: missing"),
        ("launcher: {type: slurm}", "`type` is one of: local, hostfile, ray, kubernetes"),
    ],
)
def test_invalid_options_are_refused_by_name(tmp_path: Path, change: str, named: str) -> None:
    with pytest.raises(FimError) as error:
        load_experiment(write(tmp_path, SMALL + change))
    assert named in str(error.value)
    assert "tuned.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("deepspeed: " + "[" * 40_000, "nested deeper than 50 levels"),
        ("deepspeed: " + "{a: " * 60 + "1" + "}" * 60, "line 4: nested deeper than 50 levels"),
        ("deepspeed:\n  a: &a [*a]", "line 5: an alias refers to a value that contains it"),
        ("deepspeed: &a {b: {c: *a}}", "line 4: an alias refers to a value that contains it"),
        (f"seed: {'9' * 5_000}", "line 4: invalid value"),
        (f"seed: {'9' * 4_000}", "line 4: a number has more than 64 bits"),
        ("deepspeed: {a: 2020-13-45}", "line 4: invalid value"),
        ("optimizer: {lr: .inf}", "line 4: inf is not a finite number"),
        ("deepspeed: {gradient_clipping: .nan}", "line 4: nan is not a finite number"),
        ("optimizer: {lr: 1e999}", "line 4: inf is not a finite number"),
        ("optimizer: {betas: [0.9, -.inf]}", "line 4: -inf is not a finite number"),
        (f"name: {'n' * 300}", "name: "),
        (f"tensorboard: {{project: {'n' * 300}}}", "tensorboard.project: "),
        ("tensorboard: {project: /etc}", "tensorboard.project: "),
        ("tensorboard: {name: ..}", "tensorboard.name: "),
        (
            "deepspeed:\n  a: &a0 [x, x]\n" + "".join(f"  b{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 32)),
            "more than 100,000 values, aliases counted in full",
        ),
    ],
    ids=lambda value: value[:30],
)
def test_hostile_files_are_refused_at_once(tmp_path: Path, change: str, named: str) -> None:
    began = time.monotonic()
    with pytest.raises(FimError) as error:
        load_experiment(write(tmp_path, SMALL + change))
    assert named in str(error.value)
    assert len(str(error.value)) < 1_000
    assert time.monotonic() - began < 10


def test_a_duplicate_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"tuned\.yaml.*line 6: duplicate key epochs, first on line 4"):
        load_experiment(write(tmp_path, SMALL + "epochs: 2\nseed: 1\nepochs: 3\n"))
    with pytest.raises(FimError, match=r"line 4: duplicate key lr"):
        load_experiment(write(tmp_path, SMALL + "optimizer: {lr: 1e-3, lr: 1e-4}"))


def test_values_are_read_as_other_tools_read_them(tmp_path: Path) -> None:
    text = SMALL + "deepspeed: {zero_optimization: {stage: 1, cpu_offload: no}, comms_logger: {enabled: off}}\n"
    text += "optimizer: {eps: 1e-7}\nchecks: {empty_outputs: {severity: off}}\n"
    experiment = load_experiment(write(tmp_path, text))
    assert experiment.deepspeed["zero_optimization"]["cpu_offload"] is False
    assert experiment.deepspeed["comms_logger"] == {"enabled": False}
    assert experiment.optimizer.eps == 1e-7
    assert experiment.checks["empty_outputs"].severity == "off"
    assert read_yaml("{a: 1e-5, b: [y, n], y: 'no', c: 010}") == {"a": 1e-5, "b": ["y", "n"], "y": "no", "c": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%YAML 1.3\n---\na: 1", "version"),
        ("a: &x 1\nb: &x 2\nc: *x", "an anchor is defined twice"),
        ("a: 1\n---\nb: 2", "line 2"),
    ],
)
def test_unusual_documents_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidYaml, match=message):
        read_yaml(text)


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    merged = "optimizer: &base {lr: 1e-3, eps: 1e-7}\ngate: {rules: [{metric: loss, rule: finite}]}\n"
    text = SMALL + merged.replace("&base {", "{<<: {eps: 1e-6}, ")
    assert load_experiment(write(tmp_path, text)).optimizer.eps == 1e-7


def test_tilde_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = """
storage: ~/store
model: {name_or_path: ~/model, tokenizer: ~/tokenizer}
data: {sources: [{name_or_path: ~/d.csv}], template: ~/t.tmpl, cache_dir: ~/cache}
checkpoint: {output_dir: ~/out}
logger: {output_dir: ~/logs}
launcher: {type: hostfile, hostfile: ~/hosts}
exports: {folder: ~/exports}
"""
    experiment = load_experiment(write(tmp_path, text))
    assert str(experiment.storage) == "/home/me/store"
    assert (experiment.model.name_or_path, experiment.model.tokenizer) == ("/home/me/model", "/home/me/tokenizer")
    data = experiment.data
    assert (data.sources[0].name_or_path, data.template) == ("/home/me/d.csv", "/home/me/t.tmpl")
    assert experiment.exports is not None
    others = (data.cache_dir, experiment.checkpoint[0].output_dir, experiment.logger.output_dir,
              experiment.launcher.hostfile, experiment.exports.folder)  # fmt: skip
    assert others == tuple(f"/home/me/{name}" for name in ("cache", "out", "logs", "hosts", "exports"))
    monkeypatch.setenv("FIM_STORAGE", "~/else")
    assert str(load_experiment(write(tmp_path, SMALL)).storage) == "/home/me/else"


def test_a_dialect_of_sql_files_is_known(tmp_path: Path) -> None:
    source = "{type: sql_files, name_or_path: d, sql: {dialect: nosuch}}"
    with pytest.raises(FimError, match=r"data\.sources\.0\.sql\.dialect: Unknown dialect 'nosuch'"):
        load_experiment(write(tmp_path, f"model: {{name_or_path: m}}\ndata: {{sources: [{source}]}}"))


def test_a_check_is_switched_off_with_or_without_quotes(tmp_path: Path) -> None:
    checks = "checks: {exact_duplicates: {severity: off}, empty_outputs: {severity: 'off'}}"
    overrides = load_experiment(write(tmp_path, SMALL + checks)).checks
    assert [override.severity for override in overrides.values()] == ["off", "off"]


@pytest.mark.parametrize("text", ["", "- a\n- b", "model: [", "model: {}\ndata: {sources: []}"])
def test_files_that_are_not_experiments(tmp_path: Path, text: str) -> None:
    with pytest.raises(FimError, match=r"tuned\.yaml"):
        load_experiment(write(tmp_path, text))


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="There is no experiment file"):
        load_experiment(tmp_path / "absent.yaml")


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_experiment_is_valid(path: Path) -> None:
    load_experiment(path)


def test_a_tokenizer_is_a_place_or_a_section() -> None:
    def tokenizer(value: object) -> object:
        return ModelConfig.model_validate({"config": {"model_type": "qwen3"}, "tokenizer": value}).tokenizer

    assert tokenizer({"name_or_path": "a/b"}) == tokenizer("a/b") == "a/b"
    assert tokenizer({"vocab_size": "1k"}) == TrainedTokenizer(vocab_size=1000)
    for value, said in (
        ({"path": "a"}, "give a path, a hub id"),
        ({"name_or_path": "a", "vocab_size": 600}, "give a path, a hub id"),
        (7, "give a path, a hub id"),
        ({"vocab_size": 1}, "vocab_size: Input should be greater than or equal to 512"),
    ):
        with pytest.raises(ValidationError) as refused:
            tokenizer(value)
        (problem,) = refused.value.errors()
        assert problem["loc"] == ("tokenizer",)
        assert said in problem["msg"]
