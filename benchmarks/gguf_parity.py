"""Parity of GGUF exports: greedy completions of the same token ids in llama.cpp and here.

    python -m benchmarks.gguf_parity --checkpoint FOLDER [--rows N] [--max-new-tokens N]
    python -m benchmarks.gguf_parity --pretrained FOLDER

The rows are of a synthetic export with a seed of its own, which no checkpoint was trained on, and become prompts by the recipe
of the checkpoint. A pretrained model gets a checkpoint as training would write it, with FIM tokens added if it lacks them.

The reference decodes in float32. A different completion is no error where two tokens are almost equally probable, so the first
differing token is compared in the reference: the gap is the difference of the two log-probabilities.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.llama_server import LlamaServer
from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.demo.export import clean_rows
from fim_core.exporting.export import export_gguf
from fim_core.inference.generation import load_for_inference, stop_ids_of
from fim_core.inference.greedy import greedy_tokens
from fim_core.inference.prefix_cache import PrefixCache
from fim_core.inference.prompting import load_prompt_builder
from fim_core.modeling.load import build_model
from fim_core.modeling.save import save_model
from fim_core.prompt_format.recipe import write_recipe
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import Prompt, PromptBuilder
from fim_core.records.parse import parse_input
from fim_core.records.schema import Completion

SEED = 90_001


def main() -> None:
    """Export, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="a trained checkpoint")
    source.add_argument("--pretrained", type=Path, help="a pretrained model; compared without training")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--weights", nargs="+", choices=("f16", "q8_0", "q4_k_m"), default=["f16", "q8_0", "q4_k_m"])
    parser.add_argument("--no-context", action="store_true", help="only the text around the cursor: shorter prompts")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or untrained(options.pretrained, Path(folder))
        compare(checkpoint, options)


def compare(checkpoint: Path, options: argparse.Namespace) -> None:
    """Export a checkpoint, complete the rows with each export, and print the shares."""
    model, tokenizer = load_for_inference(checkpoint)
    builder = load_prompt_builder(checkpoint, tokenizer)
    rows = completions(options.rows, with_context=not options.no_context)
    prompts = [builder.encode(row) for row in rows]
    cache, stop_ids = PrefixCache(model), stop_ids_of(model, tokenizer)
    expected = [reference(cache, prompt, stop_ids, options.max_new_tokens) for prompt in prompts]
    ended = sum(ids[-1] in stop_ids for ids in expected)
    print(
        f"{options.checkpoint or options.pretrained}: {len(prompts)} prompts of {sum(map(len, prompts)) / len(prompts):.0f} tokens on average"
    )
    print(f"reference: {sum(map(len, expected))} new tokens, {ended} completions ended")
    for weights in options.weights:
        with tempfile.TemporaryDirectory() as folder:
            quantization = None if weights == "f16" else weights
            done = export_gguf(checkpoint, Path(folder) / "export", quantization=quantization)
            server = LlamaServer(done.weights[0], threads=options.threads)
            found = [server.complete(prompt, max_tokens=options.max_new_tokens) for prompt in prompts]
            same = sum(a == b for a, b in zip(found, expected, strict=True))
            gaps = [
                gap_of(cache, prompt, ours, theirs)
                for prompt, ours, theirs in zip(prompts, expected, found, strict=True)
                if ours != theirs
            ]
            size = done.weights[0].stat().st_size / 1e6
            print(f"{weights}: {size:,.1f} MB, {same} of {len(prompts)} completions are equal{_gaps(gaps)}")
            if weights == options.weights[0]:
                texts = [text_of(builder, row) for row in rows]
                read = sum(server.tokenize(text) == ids for text, ids in zip(texts, prompts, strict=True))
                print(f"text: {read} of {len(prompts)} prompts are tokenized to the same ids")
            del server


def untrained(pretrained: Path, folder: Path) -> Path:
    """Write a checkpoint of a pretrained model as training would, without a step."""
    tokenizer = load_tokenizer(pretrained)
    options = ModelConfig(name_or_path=str(pretrained))
    recipe = PromptBuilder(tokenizer, options, DataConfig(sources=[Source(type="demo")])).recipe
    new = [tokenizer.get_vocab()[token] for token in recipe.fim_tokens.added]
    model = build_model(options, tokenizer, seed=0, dtype=torch.bfloat16, new_token_ids=new)
    save_model(model, tokenizer, recipe.fim_tokens.end_ids, folder)
    write_recipe(folder, recipe)
    return folder


def completions(count: int, *, with_context: bool = True) -> list[Completion]:
    """Editor states of an export with a seed of its own; every 40th row, so that they are of many worksheets."""
    found: list[Completion] = []
    for number, row in enumerate(clean_rows(SEED)):
        if len(found) == count:
            break
        if number % 40 == 0 and isinstance(completion := parse_input(row.input), Completion):
            found.append(completion if with_context else Completion(completion.prefix, completion.suffix))
    return found


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


def text_of(builder: PromptBuilder, row: Completion) -> str:
    """A prompt as text, without the start token, which llama.cpp adds."""
    prompt = builder.build(row)
    assert isinstance(prompt, Prompt)
    assert prompt.control_spans is None, "rows of the demo name no control tokens"
    return prompt.text.removeprefix(builder.sequence_start)


def _gaps(gaps: Sequence[float]) -> str:
    if not gaps:
        return ""
    return f"; gaps of the others: median {sorted(gaps)[len(gaps) // 2]:.4f}, largest {max(gaps):.4f} nats"


if __name__ == "__main__":
    main()
