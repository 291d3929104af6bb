"""Parity of GGUF exports: greedy completions of the same token ids in llama.cpp and here.

    python -m benchmarks.gguf_parity CONFIG [--checkpoint FOLDER | --pretrained FOLDER] [--rows N]

The prompts are those of held-out rows of an experiment, in the format of the checkpoint. A pretrained model gets a checkpoint as
training would write it, with FIM tokens added if it lacks them.

The reference decodes in float32. A different completion is no error where two tokens are almost equally probable, so the first
differing token is compared in the reference: the gap is the difference of the two log-probabilities.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.held_out import held_out_prompts
from benchmarks.llama_server import LlamaServer
from fim_core.cli.model import chosen_checkpoint
from fim_core.config import DataConfig, ModelConfig, load_experiment
from fim_core.evaluation.predictors import Predictor
from fim_core.exporting.export import Quantization, export_gguf
from fim_core.inference.greedy import greedy_tokens
from fim_core.inference.prefix_cache import PrefixCache
from fim_core.inference.prompting import load_prompt_builder
from fim_core.modeling.load import build_model
from fim_core.modeling.save import save_model
from fim_core.prompt_format.recipe import write_recipe
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import PromptBuilder

QUANTIZATIONS: dict[str, Quantization | None] = {"f16": None, "q8_0": "q8_0", "q4_k_m": "q4_k_m"}


def main(
    config: Annotated[Path, typer.Argument(help="Experiment with current data, and a checkpoint unless one is given.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint.")] = None,
    pretrained: Annotated[Path | None, typer.Option(help="A pretrained model; compared without training.")] = None,
    rows: Annotated[int, typer.Option(help="Held-out rows.")] = 50,
    max_tokens: int = 32,
    longest: Annotated[int, typer.Option(help="Longest prompt, in tokens; longer ones are skipped.")] = 1024,
    weights: Annotated[str, typer.Option(help="Kinds of weights, separated by commas.")] = ",".join(QUANTIZATIONS),
    threads: int = 2,
) -> None:
    """Export a checkpoint, complete held-out rows with each export, and print the shares."""
    experiment = load_experiment(config)
    with _checkpoint(checkpoint, pretrained, config, experiment.data) as folder:
        predictor = Predictor.load(folder)
        _, prompts = held_out_prompts(experiment, predictor, None)
        prompts = [prompt for prompt in prompts if 0 < len(prompt) <= longest][:rows]
        tokens = sum(map(len, prompts)) / len(prompts)
        print(f"{pretrained or folder}: {len(prompts)} prompts of {tokens:.0f} tokens on average")
        compare(predictor, prompts, weights.split(","), max_tokens=max_tokens, threads=threads)


def compare(
    predictor: Predictor, prompts: Sequence[list[int]], weights: Sequence[str], *, max_tokens: int, threads: int
) -> None:
    """Export the checkpoint in each of `weights`, complete the prompts with it, and print the shares of equal completions."""
    # llama.cpp does not stop at the FIM markers of every model; the export says so.
    markers = load_prompt_builder(predictor.folder, predictor.tokenizer).tokens
    stop_ids = predictor.stop_ids - {markers.prefix_id, markers.suffix_id, markers.middle_id}
    cache = PrefixCache(predictor.model)
    expected = [reference(cache, prompt, stop_ids, max_tokens) for prompt in prompts]
    ended = sum(ids[-1] in stop_ids for ids in expected)
    print(f"reference: {sum(map(len, expected))} new tokens, {ended} completions ended", flush=True)
    for kind in weights:
        with tempfile.TemporaryDirectory() as folder:
            done = export_gguf(predictor.folder, Path(folder) / "export", quantization=QUANTIZATIONS[kind])
            server = LlamaServer(done.weights[0], threads=threads)
            found = [server.complete(prompt, max_tokens=max_tokens) for prompt in prompts]
            gaps = [
                gap_of(cache, prompt, ours, theirs)
                for prompt, ours, theirs in zip(prompts, expected, found, strict=True)
                if ours != theirs
            ]
            size, same = done.weights[0].stat().st_size / 1e6, len(prompts) - len(gaps)
            print(f"{kind}: {size:,.1f} MB, {same} of {len(prompts)} completions are equal{_gaps(gaps)}", flush=True)
            if kind == weights[0]:
                read = sum(server.tokenize(text_of(predictor, prompt)) == prompt for prompt in prompts)
                print(f"text: {read} of {len(prompts)} prompts are tokenized to the same ids", flush=True)
            del server


@contextmanager
def _checkpoint(checkpoint: Path | None, pretrained: Path | None, config: Path, data: DataConfig) -> Iterator[Path]:
    """The folder of the checkpoint to compare."""
    if pretrained is None:
        yield chosen_checkpoint(checkpoint, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield untrained(pretrained, data, Path(folder))


def untrained(pretrained: Path, data: DataConfig, folder: Path) -> Path:
    """Write a checkpoint of a pretrained model as training would, without a step."""
    tokenizer = load_tokenizer(pretrained)
    options = ModelConfig(name_or_path=str(pretrained))
    recipe = PromptBuilder(tokenizer, options, data).recipe
    new = [tokenizer.get_vocab()[token] for token in recipe.fim_tokens.added]
    model = build_model(options, tokenizer, seed=0, dtype=torch.bfloat16, new_token_ids=new)
    save_model(model, tokenizer, recipe.fim_tokens.end_ids, folder)
    write_recipe(folder, recipe)
    return folder


def reference(cache: PrefixCache, prompt: Sequence[int], stop_ids: set[int], max_new_tokens: int) -> list[int]:
    """The greedy continuation of `fim serve`, with the end token if there is one."""
    return [token.id for token in greedy_tokens(cache, prompt, stop_ids=stop_ids, max_new_tokens=max_new_tokens)]


def gap_of(cache: PrefixCache, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> float:
    """How much more probable the first differing token of `ours` is, in nats; inf if one is the beginning of the other: only
    one of the two programs ends a completion there."""
    differing = (place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    if (first := next(differing, None)) is None:
        return float("inf")
    logits = cache.read([*prompt, *ours[:first]]).float()
    return float(logits[ours[first]] - logits[theirs[first]])


def text_of(predictor: Predictor, prompt: Sequence[int]) -> str:
    """A prompt as text, without the start token, which llama.cpp adds."""
    start = predictor.tokenizer.bos_token_id
    ids = list(prompt[1:] if prompt[0] == start else prompt)
    text = predictor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _gaps(gaps: Sequence[float]) -> str:
    if not gaps:
        return ""
    return f"; gaps of the others: median {sorted(gaps)[len(gaps) // 2]:.4f}, largest {max(gaps):.4f} nats"


if __name__ == "__main__":
    typer.run(main)
