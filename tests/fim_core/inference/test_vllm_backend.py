"""The vLLM backend with a fake of that package, since vLLM needs a GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fim_core.errors import FimError
from fim_core.inference.generation import Generation, generate
from tests.fim_core.conftest import Evaluated

STOP = {3, 4}
ANSWERS = {(1, 2): [7, 8, 3], (5,): [9, 9, 9, 9], (1, 2, 6): [4]}


class StandIn(ModuleType):
    """The part of vLLM's interface that is used; it records the arguments."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.engine: dict[str, Any] = {}
        self.sampling: dict[str, Any] = {}
        self.LLM = self._llm
        self.SamplingParams = self._sampling_params

    def _llm(self, **options: Any) -> SimpleNamespace:
        self.engine = options
        return SimpleNamespace(generate=self._generate)

    def _sampling_params(self, **options: Any) -> SimpleNamespace:
        self.sampling = options
        return SimpleNamespace(**options)

    @staticmethod
    def _generate(prompts: Sequence[dict[str, list[int]]], sampling: SimpleNamespace) -> list[SimpleNamespace]:
        answers = [ANSWERS[tuple(prompt["prompt_token_ids"])] for prompt in prompts]
        return [SimpleNamespace(outputs=[_completion(answer)]) for answer in answers]


def _completion(tokens: list[int]) -> SimpleNamespace:
    """A `CompletionOutput`; the log-probability of token n is -n."""
    return SimpleNamespace(
        token_ids=tuple(tokens), logprobs=[{token: SimpleNamespace(logprob=-float(token))} for token in tokens]
    )


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    package, inputs = StandIn(), ModuleType("vllm.inputs")
    inputs.TokensPrompt = dict  # type: ignore[attr-defined]  # a TypedDict there
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.inputs", inputs)
    return package


def run(checkpoint: Path) -> list[Generation]:
    prompts = [[5], [1, 2], [1, 2, 6], [1, 2]]
    return generate(checkpoint, prompts, stop_ids=STOP, max_new_tokens=4, batch_size=2, backend="vllm")


def test_answers_come_in_the_order_of_the_prompts_without_stop_tokens(vllm: StandIn, evaluated: Evaluated) -> None:
    generations = run(evaluated.checkpoint)
    assert generations == [
        Generation([9, 9, 9, 9], stopped=False),
        Generation([7, 8], stopped=True),
        Generation([], stopped=True),
        Generation([7, 8], stopped=True),
    ]
    assert generations[1].logprobs == [-7, -8, -3]


def test_decoding_is_greedy_and_stops_at_the_given_tokens_only(vllm: StandIn, evaluated: Evaluated) -> None:
    run(evaluated.checkpoint)
    assert vllm.sampling == {
        "temperature": 0.0,
        "max_tokens": 4,
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
        "detokenize": False,
        "logprobs": 0,
    }


def test_the_engine_keeps_the_dtype_and_uses_free_memory(
    vllm: StandIn, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (60, 80))
    run(evaluated.checkpoint)
    assert vllm.engine == {
        "model": str(evaluated.checkpoint),
        "dtype": "float32",
        "max_model_len": 3 + 4,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "gpu_memory_utilization": pytest.approx(0.9 * 60 / 80),
        "seed": 0,
    }


def test_a_missing_package_is_a_clear_error(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, wherever the test runs
    with pytest.raises(FimError, match=r"fim-assets\[vllm\]"):
        run(evaluated.checkpoint)


def test_a_model_in_memory_is_refused(vllm: StandIn) -> None:
    with pytest.raises(FimError, match="folder of a checkpoint"):
        generate(object(), [[1]], stop_ids=STOP, max_new_tokens=4, batch_size=2, backend="vllm")  # type: ignore[arg-type]
