"""Experiment files: loaded as they are, refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fim_core.config import load_experiment
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
deepspeed: {zero_optimization: {stage: 3, allgather_bucket_size: 500000000}}
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


def test_a_file_of_the_guides_shape_loads_as_it_is(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, GUIDE))
    assert experiment.optimizer.lr == 1e-5
    assert experiment.data.packing == "prefix_tree"
    assert experiment.deepspeed["zero_optimization"]["stage"] == 3
    assert experiment.scheduler.scheduler_specific_kwargs.min_lr_rate == 0.1


def test_the_files_name_is_the_experiments(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, SMALL)).name == "tuned"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("epoch: 3", "epoch: no such option; did you mean epochs?"),
        ("sequence_parallel_size: 4", "sequence_parallel_size: no such option"),
        ("epochs: 0", "epochs: "),
        ("deepspeed: {optimizer: {type: Adam}}", "is set by `optimizer`"),
        ("eval_interval: 10\nloss: {label_smoothing: 1.5}", "loss.label_smoothing"),
        ("scheduler: {name: cosine, scheduler_specific_kwargs: {min_lr: 1e-6}}", "min_lr has no meaning"),
        ("launcher: {type: hostfile}", "launcher.hostfile.hostfile: missing"),
        ("launcher: {hostfile: hosts}", "launcher.local.hostfile: no such option here"),
        ("launcher: {type: ray, image: fim}", "launcher.ray.image: no such option here"),
        ("launcher: {type: kubernetes, image: fim}", "launcher.kubernetes.volume_claim: missing"),
        ("launcher: {type: slurm}", "`type` is local, hostfile, ray or kubernetes"),
        ("launcher: {type: hostfile, hostfile: h, backend: openmpi, num_processes: 2}", "no meaning for openmpi"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, change: str, named: str) -> None:
    with pytest.raises(FimError) as error:
        load_experiment(write(tmp_path, SMALL + change))
    assert named in str(error.value)
    assert "tuned.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n- b", "model: [", "model: {}\ndata: {sources: []}"])
def test_files_that_are_no_experiment(tmp_path: Path, text: str) -> None:
    with pytest.raises(FimError, match=r"tuned\.yaml"):
        load_experiment(write(tmp_path, text))


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="There is no experiment file"):
        load_experiment(tmp_path / "absent.yaml")


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_experiment_is_valid(path: Path) -> None:
    load_experiment(path)
