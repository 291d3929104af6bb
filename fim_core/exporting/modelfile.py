"""Modelfile of Ollama (https://docs.ollama.com/modelfile): the prompt template, and where a completion ends."""

from __future__ import annotations

from collections.abc import Sequence

from fim_core.errors import FimError
from fim_core.prompts import Prompt, PromptBuilder
from fim_core.prompts.rendered import fim_block
from fim_core.records.schema import Completion

_PROMPT = "{{ .Prompt }}"
# Ollama leaves the key out when a request has no suffix, and a template would then print "<no value>".
_SUFFIX = "{{ if .Suffix }}{{ .Suffix }}{{ end }}"
_LARGEST_CONTEXT = 8192
_QUOTES = '"""'


def modelfile(
    builder: PromptBuilder, file: str, *, ends: Sequence[str], starts_with_bos: bool, context_length: int
) -> str:
    """The Modelfile for a GGUF file in the same folder.

    The template is the prompt of training for an editor state without context: Ollama passes only the text before and after
    the cursor to a template that has a suffix.

    Args:
        builder: of the checkpoint.
        file: name of the GGUF file.
        ends: tokens that end a completion.
        starts_with_bos: llama.cpp puts the start token before the prompt, so that the template must not.
        context_length: of the model, in tokens.

    Raises:
        FimError: the text of the template cannot be written in a Modelfile.
    """
    template = template_of(builder, starts_with_bos=starts_with_bos)
    if _QUOTES in template or not all(char.isprintable() or char in "\n\t" for char in template):
        raise FimError(
            f"The prompt template of this checkpoint contains {_QUOTES} or a character that Ollama's Modelfile cannot hold. "
            "Export it with --format safetensors."
        )
    return "\n".join(
        [
            "# ollama create NAME -f Modelfile; then POST /api/generate with `model`, `prompt` and `suffix`.",
            f"FROM ./{file}",
            f"TEMPLATE {_QUOTES}{template}{_QUOTES}",
            "PARAMETER temperature 0",
            "# Ollama's default of 1.1 would change greedy completions.",
            "PARAMETER repeat_penalty 1",
            f"PARAMETER num_ctx {min(context_length, _LARGEST_CONTEXT)}",
            "PARAMETER num_predict 128",
            *(f'PARAMETER stop "{end}"' for end in ends),
            "",
        ]
    )


def template_of(builder: PromptBuilder, *, starts_with_bos: bool) -> str:
    """The prompt of training without context, in the syntax of Ollama's templates (text/template of Go)."""
    tokens, order = builder.tokens, builder.data.fim_order
    example = builder.build(Completion("", ""))
    assert isinstance(example, Prompt), "a prompt without user text is never rejected"
    empty = fim_block("", "", tokens, order)
    opening = example.text.removesuffix(empty)
    assert opening != example.text, "every prompt ends with its FIM block"
    if starts_with_bos:
        opening = opening.removeprefix(str(builder.tokenizer.bos_token))
    return opening.replace("{{", '{{ "{{" }}') + fim_block(_PROMPT, _SUFFIX, tokens, order)
