"""SQL completion with one model: from editor state to text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Self

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fim_core.champion.registry import champion_weights
from fim_core.confidence.filter import CompletionFilter
from fim_core.config import Experiment, default_storage
from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.inference.alternatives import decode_alternatives
from fim_core.inference.cache_slots import CacheSlots
from fim_core.inference.generation import load_for_inference, stop_ids_of
from fim_core.inference.greedy import Token, greedy_tokens
from fim_core.inference.prefix_cache import why_not_shared
from fim_core.inference.prompting import load_prompt_builder
from fim_core.prompts import PromptBuilder
from fim_core.prompts.rendered import fim_block, text_around_cursor
from fim_core.prompts.trim import FittedPrompt, fit
from fim_core.records.schema import Completion
from fim_core.serving.choice import Choice, Chooser
from fim_core.serving.delta import Delta
from fim_core.serving.text_stream import TextStream
from fim_core.store import Store

MAX_CHARACTERS = 1_000_000
CHARACTERS_PER_TOKEN = 16
"""Upper bound of the average; tokens of SQL have 3 or 4 characters."""

SLOTS = 8
"""Documents whose last prompt stays in the cache, for several people or windows that share a server."""


class Completer:
    """Completes SQL with one model. Not thread-safe: one completion at a time.

    The common prefix of a prompt and the previous one of the same document (the template, table definitions, text left of
    the cursor) is not computed again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        builder: PromptBuilder,
        chooser: Chooser | None = None,
    ) -> None:
        self._builder = builder
        self._chooser = chooser
        self._stop_ids = stop_ids_of(model, tokenizer)
        self._caches = CacheSlots(model, SLOTS)
        self.context_length: int | None = getattr(model.config, "max_position_embeddings", None)
        """Maximum number of tokens of prompt and completion together; None if unknown."""

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        show_all: bool = False,
        candidates: int = 1,
        dialect: str | None = None,
        filter_in: Path | None = None,
    ) -> Self:
        """Load a checkpoint folder.

        Args:
            checkpoint: the folder.
            show_all: do not use the completion filter in the folder.
            candidates: number of completions to choose from.
            dialect: sqlglot dialect of the statements. Default: that of the filter, else that of `EvaluationConfig`.
            filter_in: folder with the completion filter. Default: the checkpoint.

        Raises:
            FimError: the folder lacks weights, an end token or the recipe for prompts, or the model cannot have candidates.
        """
        model, tokenizer = load_for_inference(checkpoint)
        if candidates > 1 and (why := why_not_shared(model)):
            raise FimError(
                f"This model completes in one way only: {why}. Set candidates to 1 (--candidates, serving.candidates)."
            )
        found = None if show_all and candidates == 1 else CompletionFilter.read(filter_in or checkpoint)
        used = None if show_all else found
        chooser = None
        if used or candidates > 1:
            from fim_core.metrics.sql_workers.statement import StatementChecker

            dialect = dialect or (found.dialect if found else EvaluationConfig().dialect)
            chooser = Chooser(StatementChecker(dialect), used, candidates)
        return cls(model, tokenizer, load_prompt_builder(checkpoint, tokenizer), chooser)

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
        return self._caches.computed

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
        self._caches.choose(prompt_ids).read(prompt_ids)

    def forget(self) -> None:
        """Empty the cache."""
        self._caches.clear()

    def room(self, prompt_ids: Sequence[int]) -> int | None:
        """The number of tokens that fit after a prompt; None if unknown."""
        return None if self.context_length is None else max(0, self.context_length - len(prompt_ids))

    @property
    def chooses(self) -> bool:
        """Whether a completion must be whole before any of it is shown, see `choose`."""
        return self._chooser is not None

    def deltas(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[Delta]:
        """Generate a completion, one token per item. Stop iterating to end it early.

        Args:
            prompt_ids: token ids from `prompt_ids`.
            max_tokens: limit of new tokens, at least 1, the stop token included.
            stop: strings that end the completion and are not part of it.
        """
        tokens = greedy_tokens(
            self._caches.choose(prompt_ids), prompt_ids, stop_ids=self._stop_ids, max_new_tokens=max_tokens
        )
        return self._deltas(tokens, max_tokens, stop)

    def choose(
        self,
        prompt_ids: Sequence[int],
        completion: Completion,
        greedy: list[Delta],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        seconds: float = math.inf,
    ) -> Iterator[Choice | None]:
        """Choose what to show, given the greedy completion: yields None after each step of the model, and the choice last.

        Args:
            prompt_ids, max_tokens, stop: as for `deltas`.
            completion: the state of the editor.
            greedy: all of its deltas.
            seconds: alternatives that are not finished after this time are not considered.
        """
        if self._chooser is None:
            yield Choice(greedy)
            return
        steps = decode_alternatives(
            self._caches.choose(prompt_ids),
            prompt_ids,
            number=self._chooser.candidates - 1,
            stop_ids=self._stop_ids,
            max_new_tokens=max_tokens,
            least_logprob=self._chooser.least_logprob,
            ends=partial(self._has_stop, stop),
        )
        start = time.monotonic()
        alternatives = (
            [list(self._deltas(tokens, max_tokens, stop)) for tokens in finished]
            for finished in takewhile(lambda _: time.monotonic() - start < seconds, steps)
        )
        yield from self._chooser.choose(completion, greedy, alternatives)

    def complete(self, completion: Completion, *, max_tokens: int) -> Choice:
        """Complete SQL; returns what to insert at the cursor.

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
        greedy = list(self.deltas(prompt_ids, max_tokens=limit))
        *_, choice = self.choose(prompt_ids, completion, greedy, max_tokens=limit)
        assert choice is not None
        return choice

    def close(self) -> None:
        """End the process that checks statements."""
        if self._chooser is not None:
            self._chooser.checker.close()

    def _has_stop(self, stop: Sequence[str], tokens: Sequence[Token]) -> bool:
        text = self._builder.encoder.decode([token.id for token in tokens]) if stop else ""
        return any(each in text for each in stop)

    def _deltas(self, tokens: Iterable[Token], max_tokens: int, stop: Sequence[str]) -> Iterator[Delta]:
        """The text that each token adds; ends at a stop token, a stop string or the limit."""
        stream = TextStream(self._builder.encoder, stop)
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
