"""`model`: which network is trained, and how it is loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fim_core.config.base import Place, Section

_SET_ELSEWHERE = {
    "dtype": "`model.dtype`",
    "torch_dtype": "`model.dtype`",
    "attn_implementation": "`model.attn_implementation`",
    "_attn_implementation": "`model.attn_implementation`",
    "eos_token_id": "`model.end_token`",
    "vocab_size": "the tokenizer",
    "use_cache": "training, which has no cache",
    "model_type": "the model's own files",
    "architectures": "the model's own files",
}
"""Options of a model's configuration that would be overruled."""


class TrainedTokenizer(Section):
    """`model.tokenizer` as a section: train a byte-level BPE tokenizer on the training rows."""

    vocab_size: int = Field(4096, ge=512, description="Entries of the vocabulary, special tokens included.")


class FimTokenNames(Section):
    """`model.fim_tokens`: the control tokens of this model, where its tokenizer does not hold a known set."""

    prefix: str = Field("<|fim_prefix|>", description="Token before the text left of the cursor.")
    suffix: str = Field("<|fim_suffix|>", description="Token before the text right of the cursor.")
    middle: str = Field("<|fim_middle|>", description="Token after which the model writes the completion.")


class PeftConfig(Section):
    """`model.peft_config`: train low-rank adapters instead of all weights; they are merged at the end."""

    peft_type: Literal["LORA"] = Field("LORA", description="Kind of adapter.")
    r: int = Field(16, ge=1, description="Rank of the update.")
    lora_alpha: float = Field(32.0, gt=0, description="Scale of the update; it is multiplied by alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped in training.")
    target_modules: str | list[str] = Field("all-linear", description="Names of the layers that get an adapter.")


class ModelConfig(Section):
    """`model`: a pretrained model by path or hub id, or a small one made from scratch by `config`."""

    type: Literal["huggingface", "liger"] = Field(
        "huggingface", description="`liger` uses the Liger kernels on a GPU; on a CPU the plain model, with a message."
    )
    name_or_path: Place | None = Field(None, description="Local folder or hub id of a pretrained model.")
    config: dict[str, Any] | None = Field(
        None, description="A transformers configuration (`model_type`, `hidden_size`, …): random weights, from scratch."
    )
    hf_config_kwargs: dict[str, Any] = Field(
        {}, description="Options of the pretrained model's transformers configuration that are replaced when it loads."
    )
    tokenizer: Place | TrainedTokenizer | None = Field(
        None, description="Local folder or hub id, or a section to train one. Default: the model's own."
    )
    fim_tokens: FimTokenNames | None = Field(
        None, description="FIM control tokens. Default: the family that the tokenizer holds; if none, they are added."
    )
    end_token: str | None = Field(
        None,
        description="Token that training writes at the end of a completion. Default: with chat markup what ends a turn, "
        "else what the model's family ends a middle with.",
    )
    attn_implementation: Literal["auto", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa"] = Field(
        "auto", description="Attention kernel. What this machine lacks is replaced by the best it has, with a message."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Numbers that training computes in. auto: bf16 on a GPU, fp32 on a CPU."
    )
    peft_config: PeftConfig | None = Field(None, description="Train LoRA adapters instead of all weights.")

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _place_or_section(cls, value: Any) -> Any:
        if value is None or isinstance(value, str | TrainedTokenizer):
            return value
        if isinstance(value, dict) and set(value) == {"name_or_path"} and isinstance(value["name_or_path"], str):
            return value["name_or_path"]
        if not isinstance(value, dict) or value.keys() - TrainedTokenizer.model_fields.keys():
            raise ValueError("give a path, a hub id, `{name_or_path: …}`, or `{vocab_size: …}` to train a tokenizer")
        try:
            return TrainedTokenizer.model_validate(value)
        except ValidationError as error:
            # Told here: pydantic would tell it of each kind of tokenizer that it tries.
            told = (f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors(include_url=False))
            raise ValueError("; ".join(told)) from error

    @field_validator("hf_config_kwargs")
    @classmethod
    def _set_nowhere_else(cls, value: dict[str, Any]) -> dict[str, Any]:
        for option in value.keys() & _SET_ELSEWHERE.keys():
            raise ValueError(f"`{option}` is set by {_SET_ELSEWHERE[option]}, not here")
        return value

    @property
    def trains(self) -> Literal["adapters", "pretrained", "scratch"]:
        """What is trained: LoRA adapters, all weights of a pretrained model, or a model from scratch."""
        if self.peft_config is not None:
            return "adapters"
        return "scratch" if self.name_or_path is None else "pretrained"

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError("give either `name_or_path` (a pretrained model) or `config` (one from scratch)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, for example qwen3")
        if self.config is not None and self.hf_config_kwargs:
            raise ValueError("`hf_config_kwargs` goes with `name_or_path`; a model from scratch has `config`")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a model from scratch needs `tokenizer`: a path, or `{vocab_size: …}` to train one")
        return self
