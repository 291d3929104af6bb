"""Exports in llama.cpp: the same tokens from text, and the same greedy completions."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from export_checkpoints import write_checkpoint
from small_tokenizers import CL100K
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")
pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install xllamacpp")

from benchmarks.gguf_parity import gap_of, reference
from benchmarks.llama_server import LlamaServer
from fim_core.exporting.architectures import ARCHITECTURES
from fim_core.exporting.export import end_ids_of, export_gguf
from fim_core.inference.generation import load_for_inference
from fim_core.inference.prefix_cache import PrefixCache
from fim_core.inference.prompting import load_prompt_builder
from fim_core.prompts import Prompt, PromptBuilder
from fim_core.records.schema import Completion

STATES = [
    Completion("SELECT o.order_id, ", " FROM orders AS o", ddl_context="CREATE TABLE orders (order_id NUMBER);"),
    Completion("select count(*) from events where ", ""),
    Completion("", "GROUP BY 1", sql_history="INSERT INTO t VALUES (1, 'x''y');\n\n\nUPDATE t SET a = a + 1.50;"),
    Completion("WITH r AS (\n\tSELECT 'Größe', \"naïve\", 123456, '日本' ", "\r\n)\n  SELECT * FROM r -- ≥ 3 🚀"),
]
NEAR_TIE = 0.05
"""Nats; rounding to float16 changed no log-probability of these models by more."""


def text_of(builder: PromptBuilder, state: Completion) -> str:
    """A prompt as text, without the start token, which llama.cpp adds."""
    prompt = builder.build(state)
    assert isinstance(prompt, Prompt)
    return prompt.text.removeprefix(builder.sequence_start)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_same_completions(model_type: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", tokenizer, model_type, order="spm")
    server = LlamaServer(export_gguf(checkpoint, tmp_path / "out").weights[0], context=512)
    model, _ = load_for_inference(checkpoint)
    builder, cache = load_prompt_builder(checkpoint, tokenizer), PrefixCache(model)
    # llama.cpp does not stop at the markers.
    tokens = builder.tokens
    ends = {*end_ids_of(checkpoint)} - {tokens.prefix_id, tokens.suffix_id, tokens.middle_id}
    variety = 0
    for state in STATES:
        prompt = builder.encode(state)
        ours, theirs = reference(cache, prompt, ends, 24), server.complete(prompt, max_tokens=24)
        assert ours == theirs or gap_of(cache, prompt, ours, theirs) < NEAR_TIE
        assert server.tokenize(text_of(builder, state)) == prompt
        variety = max(variety, len(set(ours)))
    # A random model whose output is tied to its embedding repeats one token.
    assert variety > 8 or model.config.tie_word_embeddings


def llama3_like() -> PreTrainedTokenizerFast:
    """Llama 3's split and its rule that a whole word in the vocabulary needs no merges."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CL100K), behavior="isolated"), byte])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([state.prefix + state.suffix + state.ddl_context for state in STATES] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>")


def gemma_like() -> PreTrainedTokenizerFast:
    """Gemma's: spaces as ▁, bytes for characters it lacks, merges over spaces, added tokens that are text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    texts = [f"{state.prefix}{state.suffix}".replace(" ", "▁") for state in STATES[:3]]
    backend.train_from_iterator(texts * 4, trainer)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for text in ("▁▁▁", "\n\n"):
        backend.add_tokens([AddedToken(text, special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=complete_merges(backend), eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


def complete_merges(backend: Tokenizer) -> Tokenizer:
    """Merges as converted from SentencePiece: every two tokens whose union is a token, ordered by the union."""
    import json

    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    unions = dict.fromkeys(left + right for left, right in content["model"]["merges"])
    content["model"]["merges"] = [
        [union[:cut], union[cut:]]
        for union in unions
        for cut in range(1, len(union))
        if union[:cut] in vocabulary and union[cut:] in vocabulary
    ]
    # The bytes are not special in Gemma's tokenizer.
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize("made", [llama3_like, gemma_like])
def test_other_tokenizers(made: object, tmp_path: Path) -> None:
    tokenizer = made()  # type: ignore[operator]
    checkpoint = write_checkpoint(tmp_path / "model", tokenizer, "qwen3")
    server = LlamaServer(export_gguf(checkpoint, tmp_path / "out").weights[0], context=512)
    _, loaded = load_for_inference(checkpoint)
    builder = load_prompt_builder(checkpoint, copy.deepcopy(loaded))
    for state in STATES:
        assert server.tokenize(text_of(builder, state)) == builder.encode(state)
        text = state.prefix + state.suffix
        assert server.tokenize(text) == loaded.encode(text)


def test_infill(checkpoint: Path, tmp_path: Path) -> None:
    """llama.cpp's own /infill finds the markers, and completes."""
    server = LlamaServer(export_gguf(checkpoint, tmp_path / "out").weights[0], context=512)
    answer = server.post(
        "/infill", {"input_prefix": "SELECT ", "input_suffix": " FROM t", "n_predict": 4, "temperature": 0}
    )
    assert answer["tokens_predicted"] >= 1
