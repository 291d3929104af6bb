"""Benchmark of generation: shared-prefix decoding of held-out rows against decoding one row at a time.

    python -m benchmarks.generation [--checkpoint FOLDER] [--rows N] [--batch-size N]

Completes the same rows twice: together with shared prefixes, and one by one with transformers' `generate`. Without a
checkpoint the weights are random, which takes as long but would rarely end a completion; there, one token in twenty is a
stop token, so that completions have about 20 tokens.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import torch
from datasets import load_from_disk
from transformers import PreTrainedModel

from fim_core.config import Experiment, load_experiment
from fim_core.config.model import TrainedTokenizer
from fim_core.inference.generation import Generation, generate, load_for_inference, stop_ids_of
from fim_core.inference.prefix_cache import PrefixCache
from fim_core.modeling.load import build_model
from fim_core.modeling.support import causal_model
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import train_tokenizer_on, write_fim_prompts
from fim_core.records.sources import write_raw_completions
from fim_core.tokenization import tokenize_prompts

STOP_SHARE = 0.05


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--checkpoint", type=Path, help="a trained checkpoint of the experiment")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    options = parser.parse_args()
    experiment = load_experiment(options.experiment)
    with tempfile.TemporaryDirectory() as folder:
        model, prompts, stop_ids = _prepare(experiment, options.checkpoint, Path(folder))
    prompts = prompts[: options.rows]

    with _Clock() as shared:
        together = generate(
            model, prompts, stop_ids=stop_ids, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size
        )
    with _Clock() as single:
        alone = [_generate_alone(model, prompt, stop_ids, options.max_new_tokens) for prompt in prompts]

    tokens = sum(map(len, prompts))
    cache = PrefixCache(model)
    for prompt in sorted(prompts):
        cache.read(prompt)
    lengths = [len(result.token_ids) for result in together]
    print(f"device                {model.device}, {model.dtype}, {torch.get_num_threads()} threads")
    print(f"parameters            {model.num_parameters():,}")
    print(f"rows                  {len(prompts):,}, prompts of {tokens / len(prompts):,.0f} tokens on average")
    print(f"prompt tokens         {tokens:,}, of which {cache.computed:,} are computed when prefixes are shared")
    stopped = sum(result.stopped for result in together)
    print(f"completion tokens     {sum(lengths) / len(lengths):.1f} on average, {stopped:,} rows stopped")
    print(f"shared prefixes       {shared}, {len(prompts) / shared.seconds:.1f} rows/s")
    print(f"one by one            {single}, {len(prompts) / single.seconds:.1f} rows/s")
    print(
        f"speed-up              {single.seconds / shared.seconds:.1f}, in processor time {single.cpu / shared.cpu:.1f}"
    )
    print(f"same completions      {sum(a == b for a, b in zip(together, alone, strict=True)):,} of {len(prompts):,}")


class _Clock:
    """Measures wall-clock and processor time (all threads) of a block; the latter is more reliable on a busy machine."""

    def __enter__(self) -> Self:
        self.seconds, self.cpu = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter()
        self.cpu += time.process_time()

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s ({self.cpu:.1f} s of processor time)"


def _prepare(
    experiment: Experiment, checkpoint: Path | None, folder: Path
) -> tuple[PreTrainedModel, list[list[int]], set[int]]:
    """The model, the prompts of the held-out rows, and what stops a completion."""
    raw, data = folder / "raw.parquet", experiment.data
    write_raw_completions(data, raw)
    if checkpoint is not None:
        model, tokenizer = load_for_inference(checkpoint)
        stop_ids = stop_ids_of(model, tokenizer)
    else:
        wanted = experiment.model.tokenizer
        if isinstance(wanted, TrainedTokenizer):
            tokenizer = train_tokenizer_on(
                raw, data=data, model=experiment.model, vocab_size=wanted.vocab_size, seed=experiment.seed
            )
        else:
            tokenizer = load_tokenizer(wanted or str(experiment.model.name_or_path))
        model = causal_model(build_model(experiment.model, tokenizer, seed=experiment.seed))
        model.set_attn_implementation("sdpa")
        # Wider than a fresh model's weights, so that its completions differ.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
        stop_ids = set(random.Random(0).sample(range(len(tokenizer)), int(STOP_SHARE * len(tokenizer))))
    write_fim_prompts(
        raw, folder / "prompts", data=data, model=experiment.model, tokenizer=tokenizer, seed=experiment.seed
    )
    tokenize_prompts(folder / "prompts", folder / "tokens", data=data)
    rows = load_from_disk(str(folder / "tokens" / "dataset"))["eval"]
    prompts = [row["input_ids"][: row["prompt_length"]] for row in rows]
    return model.eval(), prompts, stop_ids


def _generate_alone(model: Any, prompt: list[int], stop_ids: set[int], max_new_tokens: int) -> Generation:
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids),
        pad_token_id=0,
    )
    new = output[0, len(prompt) :].tolist()
    return Generation(new[:-1], True) if new[-1] in stop_ids else Generation(new, False)


if __name__ == "__main__":
    main()
