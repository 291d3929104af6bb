"""GGUF files: what is in them, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_checkpoints import write_checkpoint
from transformers import AutoConfig, PreTrainedTokenizerFast

from fim_core.errors import FimError
from fim_core.exporting import export as export_module
from fim_core.exporting.export import end_ids_of, export_gguf
from fim_core.inference.generation import load_for_inference
from fim_core.prompt_format.recipe import read_recipe

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")

CONTROL, NORMAL, UNUSED = 3, 1, 5


def content(path: Path) -> dict[str, Any]:
    """The metadata of a file."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def test_control_and_end_tokens(checkpoint: Path, tmp_path: Path) -> None:
    done = export_gguf(checkpoint, tmp_path / "out")
    found = content(done.weights[0])
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    fim = read_recipe(checkpoint).fim_tokens
    for marker, number, key in (
        (fim.prefix, fim.prefix_id, "fim_pre"),
        (fim.suffix, fim.suffix_id, "fim_suf"),
        (fim.middle, fim.middle_id, "fim_mid"),
    ):
        assert tokens[number] == marker
        assert types[number] == CONTROL
        assert found[f"tokenizer.ggml.{key}_token_id"] == number
    assert found["tokenizer.ggml.eos_token_id"] == fim.end_id == end_ids_of(checkpoint)[0]
    assert all(types[number] == CONTROL for number in fim.end_ids)
    assert found["tokenizer.ggml.pre"] == "qwen2"
    # Rows of the embedding without a token.
    assert [types[number] for number in (-3, -2, -1)] == [UNUSED] * 3
    assert types[0] == NORMAL
    assert f"llama.cpp does not stop at {fim.prefix}, {fim.suffix}, {fim.middle}; the Modelfile does." in done.notices


def test_the_readme_says_what_differs(checkpoint: Path, tmp_path: Path) -> None:
    done = export_gguf(checkpoint, tmp_path / "out")
    assert "completion filter and candidates are not part of a GGUF file" in done.notices[0]
    text = (done.folder / "README.md").read_text()
    assert text.startswith(f"# {done.weights[0].stem}\n")
    assert all(f"- {notice}\n" in text for notice in done.notices)


def test_end_tokens_without_a_name(checkpoint: Path, tmp_path: Path) -> None:
    """llama.cpp has fields for two ends that it does not know by name; the others are named in a notice."""
    shutil.copytree(checkpoint, tmp_path / "model")
    place = tmp_path / "model" / "generation_config.json"
    options = json.loads(place.read_text())
    place.write_text(json.dumps({**options, "eos_token_id": [300, *options["eos_token_id"], 301, 302, 303]}))
    done = export_gguf(tmp_path / "model", tmp_path / "out")
    found = content(done.weights[0])
    assert [found[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")] == [300, 301, 302]
    assert found["tokenizer.ggml.tokens"][303] in " ".join(done.notices)


def test_added_tokens_are_present(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["<DATE>"])
    checkpoint = write_checkpoint(tmp_path / "model", grown, "qwen3")
    found = content(export_gguf(checkpoint, tmp_path / "out").weights[0])
    assert found["tokenizer.ggml.tokens"][len(tokenizer)] == "<DATE>"
    assert found["tokenizer.ggml.token_type"][len(tokenizer)] == gguf.TokenType.USER_DEFINED


def test_weights(checkpoint: Path, tmp_path: Path) -> None:
    model = load_for_inference(checkpoint)[0].state_dict()
    largest = {}
    for quantization in (None, "q8_0"):
        done = export_gguf(checkpoint, tmp_path / str(quantization), quantization=quantization)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(done.weights[0]).tensors}
        assert len(tensors) == len(model)
        source, target = model["model.layers.1.mlp.down_proj.weight"].numpy(), tensors["blk.1.ffn_down.weight"]
        stored = gguf.quants.dequantize(target.data, target.tensor_type)
        largest[quantization] = float(np.abs(stored - source).max() / np.abs(source).max())
        norm = tensors["output_norm.weight"]
        assert np.array_equal(norm.data, model["model.norm.weight"].numpy())
    assert largest[None] < 2**-11
    assert 2**-11 < largest["q8_0"] < 2**-7


def other_splits(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,2}|\s+|\S+"


def lowercase(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "Lowercase"}


def takes_spaces(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][0]["lstrip"] = True


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (other_splits, "it splits words by another rule than qwen2 and llama-bpe"),
        (lowercase, r"it changes text before splitting it \(Lowercase\)"),
        (takes_spaces, "its token <|endoftext|> takes the space around it".replace("|", r"\|")),
    ],
)
def test_unknown_splitting_is_refused(tokenizer: PreTrainedTokenizerFast, change: Any, cause: str) -> None:
    from fim_core.exporting.splitting import splitting_of

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    assert splitting_of(content).pre == "qwen2"
    change(content)
    with pytest.raises(FimError, match=cause):
        splitting_of(content)


def test_scores_of_merges() -> None:
    from fim_core.exporting.splitting import scores_of_merges

    vocabulary = {text: number for number, text in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    merges = [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]
    scores = scores_of_merges(merges, vocabulary)
    assert scores == {"bc": 0.0, "ab": -1.0, "abc": -2.0, "a": -4.0, "b": -4.0, "c": -4.0}
    with pytest.raises(FimError, match="scores cannot express"):
        scores_of_merges(merges[:3], vocabulary)  # a and bc may not merge
    with pytest.raises(FimError, match="scores cannot express"):
        scores_of_merges([merges[3], *merges[:3]], vocabulary)  # abc is made early, and again late


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("granite", {}, "Models of type granite cannot be written"),
        ("qwen3", {"attention_bias": True}, "have another attention_bias"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "another use_sliding_window",
        ),
        ("qwen2", {"head_dim": 8, "hidden_size": 64, "num_attention_heads": 4}, "another head_dim"),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters"),
        ("gemma3_text", {"final_logit_softcapping": 3.0}, "another final_logit_softcapping"),
        ("gemma3_text", {"query_pre_attn_scalar": 16, "head_dim": 8}, "another query_pre_attn_scalar"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6, "num_hidden_layers": 6}, "another layer_types"),
    ],
)
def test_other_computations_are_refused(model_type: str, options: dict[str, Any], message: str) -> None:
    from fim_core.exporting.architectures import architecture_of

    with pytest.raises(FimError, match=message):
        architecture_of(AutoConfig.for_model(model_type, **options))


def test_too_large_for_float16(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FimError, match="float16 cannot hold"):
        export_gguf(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_llama_weights_are_interleaved() -> None:
    """The rotation of neighbours (llama.cpp) equals that of halves (transformers) on changed rows."""
    from fim_core.exporting.architectures import ARCHITECTURES

    config = AutoConfig.for_model("llama", hidden_size=8, num_attention_heads=1, num_key_value_heads=1)
    weight = torch.arange(8.0)[:, None].expand(8, 8)
    changed = ARCHITECTURES["llama"].change("model.layers.0.self_attn.q_proj.weight", weight, config)
    assert changed[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_missing_packages(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"llama_cpp"}
    for module in (export_module, export_module.llama_quantize):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in missing else find_spec(name))
    with pytest.raises(FimError, match="pip install llama-cpp-python"):
        export_gguf(checkpoint, tmp_path / "out", quantization="q4_k_m")
    missing.add("gguf")
    with pytest.raises(FimError, match=r"pip install 'fim-assets\[gguf\]'"):
        export_gguf(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
