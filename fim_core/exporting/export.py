"""Export of a checkpoint to a folder: which files it gets, and what their user has to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fim_core.atomic import read_json_as
from fim_core.errors import FimError
from fim_core.exporting import llama_quantize
from fim_core.exporting.output import export_folder
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.store import MANIFEST, require_whole_copy

if TYPE_CHECKING:
    from fim_core.exporting.vocabulary import Vocabulary
    from fim_core.prompts import PromptBuilder

Quantization = Literal["q8_0", "q4_k_m"]

MODELFILE = "Modelfile"
README = "README.md"


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: where it is.
        weights: the files with the weights.
        notices: what differs from `fim serve`, a sentence each.
    """

    folder: Path
    weights: tuple[Path, ...]
    notices: tuple[str, ...] = ()


def name_of(checkpoint: Path) -> str:
    """`EXPERIMENT-VERSION` of a checkpoint; of one without a manifest, the name of its folder."""
    try:
        manifest = read_json_as(checkpoint / MANIFEST, dict)
        return f"{manifest['experiment']}-{manifest['version']}"
    except (FileNotFoundError, KeyError):
        return checkpoint.resolve().name


def export_safetensors(checkpoint: Path, output: Path | None = None) -> Export:
    """Export a folder with weights in bfloat16, which `fim serve --checkpoint` and transformers load.

    Args:
        output: the folder; None: one in the current folder, named like the model.

    Raises:
        FimError: the checkpoint is damaged or incomplete, or the output exists.
    """
    from fim_core.exporting.safetensors_folder import write_bfloat16
    from fim_core.prompt_format.recipe import read_recipe

    _require_checkpoint(checkpoint)
    read_recipe(checkpoint)
    name = name_of(checkpoint)
    final = output or Path(name)
    with export_folder(final, {"model": name, "format": "safetensors", "weights": "bf16"}) as folder:
        write_bfloat16(checkpoint, folder)
        _add_to_card(CheckpointFolder(folder).card, name)
    return Export(final, tuple(sorted(final.glob("*.safetensors"))))


def export_gguf(checkpoint: Path, output: Path | None = None, *, quantization: Quantization | None = None) -> Export:
    """Export a GGUF file for llama.cpp, a Modelfile for Ollama, and a README of what differs from `fim serve`.

    Args:
        output: the folder; None: one in the current folder, named like the model.
        quantization: of matrices; None: float16.

    Raises:
        FimError: a package is missing, llama.cpp would read or compute something differently, the checkpoint is damaged or
            incomplete, or the output exists.
    """
    if find_spec("gguf") is None:
        raise FimError("--format gguf needs the package gguf: pip install 'fim-assets[gguf]'.")
    if quantization == "q4_k_m":
        llama_quantize.require_llama_cpp()
    _require_checkpoint(checkpoint)
    from transformers import AutoConfig

    from fim_core.exporting.gguf_file import write_gguf
    from fim_core.exporting.modelfile import modelfile
    from fim_core.exporting.vocabulary import vocabulary_of
    from fim_core.inference.prompting import load_prompt_builder
    from fim_core.prompt_format.tokens import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    builder = load_prompt_builder(checkpoint, tokenizer)
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    ends = end_ids_of(checkpoint)
    starts_with_bos = bool(builder.sequence_start)
    vocabulary = vocabulary_of(
        tokenizer, builder.tokens, rows=config.vocab_size, end_ids=ends, starts_with_bos=starts_with_bos
    )
    name = f"{name_of(checkpoint)}-{quantization or 'f16'}"
    final = output or Path(name)
    file = f"{name}.gguf"
    text = modelfile(
        builder,
        file,
        ends=tokenizer.convert_ids_to_tokens(ends),
        starts_with_bos=starts_with_bos,
        context_length=config.max_position_embeddings,
    )
    notices = _notices_of_gguf(builder, vocabulary)
    record = {"model": name_of(checkpoint), "format": "gguf", "weights": quantization or "f16"}
    with export_folder(final, record) as folder:
        if quantization == "q4_k_m":
            whole = folder / ".f16"
            write_gguf(checkpoint, config, vocabulary, whole, name=name, storage="f16")
            llama_quantize.quantize_q4_k_m(whole, folder / file)
            whole.unlink()
        else:
            write_gguf(checkpoint, config, vocabulary, folder / file, name=name, storage=quantization or "f16")
        (folder / MODELFILE).write_text(text, encoding="utf-8")
        (folder / README).write_text(_readme_of_gguf(name, file, notices), encoding="utf-8")
    return Export(final, (final / file,), notices)


def end_ids_of(checkpoint: Path) -> list[int]:
    """The tokens that end a completion, by the generation config of a checkpoint, the trained one first.

    Raises:
        FimError: there are none.
    """
    path = checkpoint / "generation_config.json"
    found = read_json_as(path, dict).get("eos_token_id") if path.is_file() else None
    if found is None:
        raise FimError(f"{path} has no eos_token_id, so nothing would end a completion. Set it.")
    return found if isinstance(found, list) else [found]


def _require_checkpoint(checkpoint: Path) -> None:
    if not (checkpoint / "config.json").is_file() or not any(checkpoint.glob("*.safetensors")):
        raise FimError(f"There is no checkpoint in {checkpoint}: it needs config.json and *.safetensors.")
    require_whole_copy(checkpoint)


def _add_to_card(card: Path, name: str) -> None:
    text = card.read_text(encoding="utf-8").rstrip() if card.exists() else f"# {name}"
    card.write_text(f"{text}\n\n## Export\n\n{name}, weights rounded to bfloat16.\n", encoding="utf-8")


def _notices_of_gguf(builder: PromptBuilder, vocabulary: Vocabulary) -> tuple[str, ...]:
    """What differs in llama.cpp and Ollama from `fim serve`."""
    notices = [
        "The completion filter and candidates are not part of a GGUF file: llama.cpp and Ollama show every completion, `fim serve` "
        "only those that are confident enough."
    ]
    if builder.context_fields:
        notices.append(
            f"Ollama and llama.cpp's /infill send no context ({', '.join(builder.context_fields)}); `fim serve` does."
        )
    if vocabulary.splitting.skips_nfc:
        notices.append("llama.cpp does not normalize text to NFC, so decomposed accents become other tokens.")
    if vocabulary.other_ends:
        notices.append(f"llama.cpp does not stop at {', '.join(vocabulary.other_ends)}; the Modelfile does.")
    return tuple(notices)


def _readme_of_gguf(name: str, file: str, notices: Sequence[str]) -> str:
    differences = "\n".join(f"- {notice}" for notice in notices)
    return (
        f"# {name}\n\n`{file}` is for llama.cpp; `{MODELFILE}` makes an Ollama model of it.\n\n"
        f"## Differences from `fim serve`\n\n{differences}\n"
    )
