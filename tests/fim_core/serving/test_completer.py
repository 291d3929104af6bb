"""Completions of one model, and the choice of the default checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim_core.cli.model import chosen_checkpoint
from fim_core.errors import FimError
from fim_core.inference.generation import generate, load_for_inference, stop_ids_of
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer, default_checkpoint
from fim_core.store import Store
from fim_core.tokenization.encoder import TextEncoder


@settings(max_examples=15, deadline=None)
@given(prefix=st.text(st.sampled_from("SELECT a,b\n "), max_size=12), suffix=st.text(max_size=4))
def test_serves_what_evaluation_measures(completer: Completer, checkpoint: Path, prefix: str, suffix: str) -> None:
    model, tokenizer = load_for_inference(checkpoint)
    completion = Completion(prefix, suffix)
    prompt = completer.prompt_ids(completion)
    measured = generate(model, [prompt], stop_ids=stop_ids_of(model, tokenizer), max_new_tokens=12, batch_size=1)[0]
    deltas = list(completer.deltas(prompt, max_tokens=12))
    text = TextEncoder(tokenizer).decode(measured.token_ids)
    assert "".join(delta.text for delta in deltas) == text
    assert [delta.tokens for delta in deltas] == list(range(1, len(deltas) + 1))
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == ("stop" if measured.stopped else "length")
    assert completer.complete(completion, max_tokens=12).text == text


def test_ends_at_a_stop_string(completer: Completer) -> None:
    prompt = completer.prompt_ids(Completion("SELECT ", ""))
    text = "".join(delta.text for delta in completer.deltas(prompt, max_tokens=10))
    stop = text[len(text) // 2 :][:2]
    assert stop, "the case needs some text"
    deltas = list(completer.deltas(prompt, max_tokens=10, stop=[stop]))
    assert "".join(delta.text for delta in deltas) == text[: text.index(stop)]
    assert deltas[-1].finish_reason == "stop"


def test_a_longer_prompt_computes_only_what_is_new(checkpoint: Path) -> None:
    completer = Completer.load(checkpoint)
    first = completer.prompt_ids(Completion("SELECT a", ""))
    next(completer.deltas(first, max_tokens=1))
    before = completer.computed
    second = completer.prompt_ids(Completion("SELECT a, b", ""))
    next(completer.deltas(second, max_tokens=1))
    assert completer.computed - before < len(second) / 2


def test_refuses_a_prompt_that_fills_the_context(completer: Completer) -> None:
    with pytest.raises(FimError, match="context of 1000 tokens"):
        completer.complete(Completion("x," * 1000, ""), max_tokens=5)


def test_shortens_the_limit_to_the_context(completer: Completer) -> None:
    assert completer.context_length is not None
    longest = next(
        completion
        for size in range(1000, 0, -1)
        if completer.room(completer.prompt_ids(completion := Completion("1" * size, "")))
    )
    room = completer.room(completer.prompt_ids(longest))
    assert room is not None
    assert 0 < room < 9
    prompt = completer.prompt_ids(longest)
    assert completer.complete(longest, max_tokens=9).text == "".join(
        delta.text for delta in completer.deltas(prompt, max_tokens=room)
    )


def test_default_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIM_STORAGE", str(tmp_path))
    with pytest.raises(FimError, match=r"no trained_checkpoint.*--experiment"):
        default_checkpoint()
    store = Store(tmp_path)

    def publish(asset: str, experiment: str = "x") -> Path:
        with store.publish(asset, experiment=experiment, inputs={}, config={}, code=experiment):
            pass
        artifact = store.versions(asset)[-1]
        store.use(artifact, experiment)
        return artifact.path

    trained = publish("trained_checkpoint")
    assert default_checkpoint().resolve() == trained.resolve()
    champion = publish("champion_model")
    assert default_checkpoint().resolve() == (champion / "model" / "x").resolve()

    other = publish("trained_checkpoint", "y")
    with pytest.raises(FimError, match=r"several experiments \(x, y\).*--experiment"):
        default_checkpoint()
    named = {"x": champion / "model" / "x", "y": other}
    monkeypatch.delenv("FIM_STORAGE")
    for name, folder in named.items():
        experiment = tmp_path / f"{name}.yaml"
        experiment.write_text(f"storage: {tmp_path}\nmodel: {{name_or_path: m}}\ndata: {{sources: [{{type: demo}}]}}")
        assert chosen_checkpoint(None, experiment).resolve() == folder.resolve()
        assert chosen_checkpoint(tmp_path, experiment) == tmp_path
