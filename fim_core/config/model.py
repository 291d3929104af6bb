"""Section `model`: the model to train, its tokenizer and adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fim_core.config.base import PathOrId, Section

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
"""Options of a model's configuration that other options override."""


class TrainedTokenizer(Section):
    """`model.tokenizer` as a section: train a byte-level BPE tokenizer on the training rows."""

    vocab_size: int = Field(4096, ge=512, description="Vocabulary size, special tokens included.")


class FimTokenNames(Section):
    """`model.fim_tokens`: FIM control tokens, for a tokenizer without those of a known family."""

    prefix: str = Field("<|fim_prefix|>", description="Token before the text left of the cursor.")
    suffix: str = Field("<|fim_suffix|>", description="Token before the text right of the cursor.")
    middle: str = Field("<|fim_middle|>", description="Token before the completion.")


class PeftConfig(Section):
    """`model.peft_config`: train low-rank adapters instead of all weights. They are merged after training."""

    peft_type: Literal["LORA"] = Field("LORA", description="Kind of adapter.")
    r: int = Field(16, ge=1, description="Rank of the update.")
    lora_alpha: float = Field(32.0, gt=0, description="Scale of the update, which is multiplied by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' inputs.")
    target_modules: str | list[str] = Field("all-linear", description="Names of the layers to adapt.")


class ModelConfig(Section):
    """`model`: a pretrained model by path or hub id, or one from scratch by `config`."""

    type: Literal["huggingface", "liger"] = Field(
        "huggingface",
        description="`liger` uses the Liger kernels on a GPU. On a CPU it is the plain model, with a notice.",
    )
    name_or_path: PathOrId | None = Field(None, description="Local folder or hub id of a pretrained model.")
    config: dict[str, Any] | None = Field(
        None, description="transformers configuration (`model_type`, `hidden_size`, …) of a model with random weights."
    )
    hf_config_kwargs: dict[str, Any] = Field(
        {}, description="Overrides of the pretrained model's transformers configuration."
    )
    tokenizer: PathOrId | TrainedTokenizer | None = Field(
        None, description="Local folder or hub id, or `{vocab_size: …}` to train one. Default: the model's own."
    )
    fim_tokens: FimTokenNames | None = Field(
        None,
        description="FIM control tokens. Default: those of the tokenizer's family; if it has none, they are added.",
    )
    end_token: str | None = Field(
        None,
        description="Token at the end of every completion. Default: the end of a turn with a chat template, otherwise the "
        "token that the model's family puts after a middle.",
    )
    attn_implementation: Literal["auto", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa"] = Field(
        "auto",
        description="Attention kernel. One that is not available is replaced by the best that is, with a notice.",
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Data type of training. auto: bf16 on a GPU, fp32 on a CPU."
    )
    peft_config: PeftConfig | None = Field(None, description="Train LoRA adapters instead of all weights.")

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _path_or_section(cls, value: Any) -> Any:
        if value is None or isinstance(value, str | TrainedTokenizer):
            return value
        if isinstance(value, dict) and set(value) == {"name_or_path"} and isinstance(value["name_or_path"], str):
            return value["name_or_path"]
        if not isinstance(value, dict) or value.keys() - TrainedTokenizer.model_fields.keys():
            raise ValueError("give a path, a hub id, `{name_or_path: …}`, or `{vocab_size: …}` to train a tokenizer")
        try:
            return TrainedTokenizer.model_validate(value)
        except ValidationError as error:
            # Reported here: pydantic would report it once for each alternative of the union.
            problems = (f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors(include_url=False))
            raise ValueError("; ".join(problems)) from error

    @field_validator("hf_config_kwargs")
    @classmethod
    def _not_set_elsewhere(cls, value: dict[str, Any]) -> dict[str, Any]:
        for option in value.keys() & _SET_ELSEWHERE.keys():
            raise ValueError(f"`{option}` cannot be set here; it is determined by {_SET_ELSEWHERE[option]}")
        return value

    @property
    def trains(self) -> Literal["adapters", "pretrained", "scratch"]:
        """Which weights are trained: LoRA adapters, all of a pretrained model, or those of a model from scratch."""
        if self.peft_config is not None:
            return "adapters"
        return "scratch" if self.name_or_path is None else "pretrained"

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError("give either `name_or_path` (a pretrained model) or `config` (a model from scratch)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, for example qwen3")
        if self.config is not None and self.hf_config_kwargs:
            raise ValueError("`hf_config_kwargs` is for `name_or_path`; for a model from scratch use `config`")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a model from scratch needs `tokenizer`: a path, or `{vocab_size: …}` to train one")
        return self
