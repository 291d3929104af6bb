"""Families of FIM models: their markers, and the tokens that end a middle.

The tokens are from the models' documentation. Only Qwen's were verified with a copy of it and with a model:

- qwen: README and examples/Qwen2.5-Coder-fim.py of QwenLM/Qwen2.5-Coder; Qwen3 has the same tokens.
- codegemma: "CodeGemma formatting" on ai.google.dev, and the model card of google/codegemma-2b, which ends generation
  at the file separator, the markers and `<eos>`.
- granite4: tokenizer of ibm-granite/granite-4.0-*-base; its one token for the end of a text is `<|end_of_text|>`.
- starcoder: Li et al., 2023, "StarCoder", section 3; Lozhkov et al., 2024, "StarCoder 2 and The Stack v2", section 5,
  where a file separator follows a middle too; Mishra et al., 2024, "Granite Code Models", has the same tokens.
- santacoder: model card of bigcode/santacoder.
- deepseek: Guo et al., 2024, "DeepSeek-Coder", section 3.1.2. It calls the place of the cursor "hole"; it is between
  prefix and suffix, so it marks the suffix. Its instruct models end a turn with `<|EOT|>`.
- codellama: Rozière et al., 2023, "Code Llama", section 2.3, and generation.py of meta-llama/codellama.
- codestral: mistralai/mistral-common, `encode_fim`: suffix first, then the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The control tokens of one family.

    Attributes:
        prefix, suffix, middle: markers of the prompt.
        end: ends a middle in prompts without chat markup; trained on.
        stops: more tokens that end a middle in serving, if the tokenizer has them. The markers do in every family and
            are not listed.
        mark: a token that distinguishes the family from others with the same markers; empty if there are none.
    """

    prefix: str
    suffix: str
    middle: str
    end: str
    stops: tuple[str, ...] = ()
    mark: str = ""

    @property
    def markers(self) -> tuple[str, str, str]:
        """Prefix, suffix and middle."""
        return self.prefix, self.suffix, self.middle


FAMILIES: dict[str, Family] = {
    "codegemma": Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        end="<|file_separator|>",
        stops=("<eos>", "<end_of_turn>"),
        mark="<|file_separator|>",
    ),
    "granite4": Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        end="<|end_of_text|>",
        stops=("<|fim_pad|>", "<|filename|>", "<|reponame|>"),
        mark="<|end_of_text|>",
    ),
    "qwen": Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        end="<|endoftext|>",
        stops=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_end|>"),
    ),
    "starcoder": Family(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        end="<|endoftext|>",
        stops=("<fim_pad>", "<file_sep>", "<repo_name>", "<filename>", "<reponame>", "<gh_stars>"),
    ),
    "santacoder": Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>", end="<|endoftext|>", stops=("<fim-pad>",)),
    "deepseek": Family(
        "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", end="<｜end▁of▁sentence｜>", stops=("<|EOT|>",)
    ),
    "codellama": Family("▁<PRE>", "▁<SUF>", "▁<MID>", end="▁<EOT>", stops=("</s>",)),
    "codestral": Family("[PREFIX]", "[SUFFIX]", "[MIDDLE]", end="</s>"),
}
"""By name. A tokenizer belongs to the first family whose prefix, suffix and mark it has."""

SUFFIX_FIRST = frozenset({"codestral"})
"""Families that were only trained with the suffix before the prefix."""
