"""SQL completion with one model: from editor state to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fim_core.champion.registry import champion_weights
from fim_core.config import Experiment, default_storage
from fim_core.errors import FimError
from fim_core.inference.generation import load_for_inference, stop_ids_of
from fim_core.inference.greedy import greedy_tokens
from fim_core.inference.prefix_cache import PrefixCache
from fim_core.inference.prompting import load_prompt_builder
from fim_core.prompts import PromptBuilder
from fim_core.prompts.rendered import fim_block, text_around_cursor
from fim_core.prompts.trim import FittedPrompt, fit
from fim_core.records.schema import Completion
from fim_core.serving.text_stream import TextStream
from fim_core.store import Store

MAX_CHARACTERS = 1_000_000
CHARACTERS_PER_TOKEN = 16
"""Upper bound of the average; tokens of SQL have 3 or 4 characters."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The change after one more token.

    Attributes:
        text: new text; often empty, while a character or a stop string may be incomplete.
        tokens: number of tokens generated so far, stop token included.
        logprob: log-probability of the token.
        finish_reason: set on the last delta: `stop` for a stop token or string, `length` for the limit.
    """

    text: str
    tokens: int
    logprob: float
    finish_reason: Literal["stop", "length"] | None = None


class Completer:
    """Completes SQL with one model. Not thread-safe: one completion at a time.

    The common prefix of a prompt and the previous one (the template, table definitions, text left of the cursor) is not
    computed again.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, builder: PromptBuilder) -> None:
        self._builder = builder
        self._stop_ids = stop_ids_of(model, tokenizer)
        self._cache = PrefixCache(model)
        self.context_length: int | None = getattr(model.config, "max_position_embeddings", None)
        """Maximum number of tokens of prompt and completion together; None if unknown."""

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """Load a checkpoint folder.

        Raises:
            FimError: the folder lacks weights, an end token or the recipe for prompts.
        """
        model, tokenizer = load_for_inference(checkpoint)
        return cls(model, tokenizer, load_prompt_builder(checkpoint, tokenizer))

    @property
    def max_characters(self) -> int:
        """Maximum number of characters of a prompt with its context; longer ones are not tokenized."""
        return MAX_CHARACTERS if self.context_length is None else self.context_length * CHARACTERS_PER_TOKEN

    @property
    def notice(self) -> str | None:
        """A notice for users about the prompts of this model, or None."""
        return None if self._builder.recipe.has_template else self._builder.notice

    def prompt_ids(self, completion: Completion) -> list[int]:
        """Token ids of the prompt, the same as in training for the same fields."""
        return self._builder.encode(completion)

    @property
    def fim_block(self) -> str:
        """The FIM block of the prompts of this model, in the syntax of Ollama's templates."""
        return fim_block("{{ .Prompt }}", "{{ .Suffix }}", self._builder.tokens, self._builder.data.fim_order)

    @property
    def computed(self) -> int:
        """Number of tokens that the model has computed so far; those in its cache are not computed again."""
        return self._cache.computed

    def text_around_cursor(self, prompt: str, suffix: str) -> tuple[str, str]:
        """Text before and after the cursor of a client's prompt, which may have the FIM markers of this model.

        Raises:
            FimError: it has FIM markers and cannot be taken apart.
        """
        start = self._builder.tokenizer.bos_token or ""
        return text_around_cursor(prompt, suffix, self._builder.tokens, start=start)

    def fit(self, completion: Completion, *, max_tokens: int) -> FittedPrompt:
        """The prompt, trimmed if it leaves no room for `max_tokens` new tokens.

        At least half of the model's context is for the prompt, however large `max_tokens` is.

        Raises:
            FimError: it cannot be trimmed enough.
        """
        if self.context_length is None:
            return FittedPrompt(self.prompt_ids(completion), completion, {})
        reserved = min(max_tokens, self.context_length // 2)
        return fit(self._builder, completion, self.context_length - reserved)

    def read(self, prompt_ids: Sequence[int]) -> None:
        """Compute the states of a prompt, so that the next one that begins like it is faster."""
        self._cache.read(prompt_ids)

    def room(self, prompt_ids: Sequence[int]) -> int | None:
        """The number of tokens that fit after a prompt; None if unknown."""
        return None if self.context_length is None else max(0, self.context_length - len(prompt_ids))

    def deltas(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[Delta]:
        """Generate a completion, one token per item. Stop iterating to end it early.

        Args:
            prompt_ids: token ids from `prompt_ids`.
            max_tokens: limit of new tokens, at least 1, the stop token included.
            stop: strings that end the completion and are not part of it.
        """
        stream = TextStream(self._builder.encoder, stop)
        tokens = greedy_tokens(self._cache, prompt_ids, stop_ids=self._stop_ids, max_new_tokens=max_tokens)
        for count, token in enumerate(tokens, start=1):
            if token.id in self._stop_ids:
                yield Delta(stream.finish(), count, token.logprob, "stop")
                return
            text = stream.add(token.id)
            if stream.stopped:
                yield Delta(text, count, token.logprob, "stop")
                return
            if count == max_tokens:
                text += stream.finish()
                yield Delta(text, count, token.logprob, "stop" if stream.stopped else "length")
                return
            yield Delta(text, count, token.logprob)

    def complete(self, completion: Completion, *, max_tokens: int) -> str:
        """Complete SQL; returns the text to insert at the cursor.

        Raises:
            FimError: the prompt fills the model's context.
        """
        prompt_ids = self.prompt_ids(completion)
        room = self.room(prompt_ids)
        if room == 0:
            raise FimError(
                f"The prompt has {len(prompt_ids)} tokens, which fill the model's context of {self.context_length} tokens. "
                "Shorten the context."
            )
        limit = max_tokens if room is None else min(max_tokens, room)
        return "".join(delta.text for delta in self.deltas(prompt_ids, max_tokens=limit))


def default_checkpoint(experiment: Experiment | None = None) -> Path:
    """The champion of an experiment, or its newest trained checkpoint if there is no champion.

    Without an experiment, the storage (`FIM_STORAGE`, or `.fim`) must hold models of only one.

    Raises:
        FimError: there is no model yet, or there are models of several experiments.
    """
    if experiment is not None:
        store, name = Store(experiment.storage), experiment.name
    else:
        store, name = Store(default_storage()), None
        names = {checkpoint.manifest["experiment"] for checkpoint in store.versions("trained_checkpoint")}
        if not names:
            raise FimError(
                f"There is no trained_checkpoint in {store.root} yet. Train one, or select a model with --experiment CONFIG or "
                "--checkpoint FOLDER."
            )
        if len(names) > 1:
            raise FimError(
                f"{store.root} holds models of several experiments ({', '.join(sorted(names))}). Select one with "
                "--experiment CONFIG or --checkpoint FOLDER."
            )
    if (champion := store.find_current("champion_model", name)) is not None:
        return champion_weights(champion)
    return store.current("trained_checkpoint", name).path
