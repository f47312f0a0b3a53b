"""Which model a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_source import check_is_folder, looks_local

from hf_relopt.errors import ConfigError


@dataclass(frozen=True)
class ModelSource:
    """Which model to train. Default: a GPT-2 of a few million parameters."""

    _argument_group_name = "Model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "continue training this model, from the hub or a directory"}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "train a model of this configuration from scratch"}
    )
    model_type: str | None = field(
        default=None, metadata={"help": "train this architecture from scratch, as in llama"}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": 'changes to the configuration, as in "n_layer=4,n_embd=256"'},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "this tokenizer, instead of the model's or one trained on the text"},
    )
    vocab_size: int = field(
        default=4096,
        metadata={"help": "vocabulary size of a tokenizer that is trained on the text"},
    )

    def __post_init__(self) -> None:
        shapes = self.config_name or self.model_type or self.config_overrides
        if self.model_name_or_path and shapes:
            raise ConfigError(
                "--config_name, --model_type and --config_overrides shape a model that is trained "
                "from scratch; with --model_name_or_path the shape is that of the pretrained model."
            )
        if self.config_name and self.model_type:
            raise ConfigError(
                "give either --config_name or --model_type; a configuration includes its type."
            )
        if self.vocab_size < 257:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}; it must be 257 or more: 256 bytes and one end "
                "token."
            )

    @property
    def is_small_gpt2(self) -> bool:
        """Whether no model and no configuration was named."""
        return not (self.model_name_or_path or self.config_name or self.model_type)

    @property
    def words(self) -> str:
        """This model in a few words."""
        shape = self.config_name or self.model_type or "GPT-2"
        return self.model_name_or_path or f"{shape}, from scratch"

    def look(self) -> None:
        """Raise a ConfigError for a path to a model or a tokenizer where there is no folder."""
        look_at_names(
            model=self.model_name_or_path, configuration=self.config_name,
            tokenizer=self.tokenizer_name,
        )  # fmt: skip


@dataclass(frozen=True)
class PretrainedSource:
    """Which pretrained model is fine-tuned."""

    _argument_group_name = "Model"

    model_name_or_path: str = field(
        default="", metadata={"help": "the pretrained model, from the hub or a directory"}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "this tokenizer, instead of the model's"}
    )

    def look(self) -> None:
        """Raise a ConfigError for a path where there is no folder."""
        look_at_names(model=self.model_name_or_path, tokenizer=self.tokenizer_name)


def look_at_names(**names: str | None) -> None:
    """Raise a ConfigError for a name that can only be a path, and is none of a folder.

    Args:
        names: what it is -> the name, or None where none was given.
    """
    for what, name in names.items():
        if name == "":
            raise ConfigError(f"the name of the {what} is empty.")
        # A configuration may be a file.
        if name is not None and looks_local(name) and not name.endswith(".json"):
            check_is_folder(name, what)
