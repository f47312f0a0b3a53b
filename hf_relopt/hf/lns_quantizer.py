"""What Transformers calls a quantizer, for weights in codes: loading, saving, and back to numbers.

All code that relies on the insides of ``from_pretrained`` for it is in this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from hf_relopt.errors import FormatError, UnsupportedSetup
from hf_relopt.hf.lns_config import METHOD, LNSConfig
from hf_relopt.hf.lns_files import flattened, read_bytes_into
from hf_relopt.lns.packing import SCALES
from hf_relopt.lns.stored import note_of, restored
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.nn.compression import convert, restore, to_convert


class LNSQuantizer(HfQuantizer):
    """Weights in codes for ``from_pretrained`` and ``save_pretrained``."""

    quantization_config: LNSConfig
    requires_calibration = False
    # Names of the weights that are to be in codes.
    _chosen: frozenset[str] = frozenset()

    def __init__(self, quantization_config: LNSConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # Names of weights that the file has as numbers.
        self.numbers: set[str] = set()

    @property
    def quantized_element_size(self) -> float:
        """Bytes per weight in codes, for ``device_map``."""
        return self.quantization_config.bits / 8

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what keeps weights elsewhere than in memory."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise UnsupportedSetup(
                "device_map puts weights in codes on disk, where they are not kept as codes. Leave "
                "'disk' out of it: in codes the model takes "
                f"{self.quantization_config.bits / 8:g} bytes per weight."
            )

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        # A body without its head, say, has not all that was skipped in the file.
        skip, strict = self.quantization_config.skip, not self.pre_quantized
        self._chosen = frozenset(_all_names(model, skip, strict))

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Says whether numbers of the file are to be codes."""
        return not self.pre_quantized and param_name in self._chosen

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        """Bytes per entry of a weight, for ``device_map``."""
        in_codes = param_name in self._chosen
        return self.quantized_element_size if in_codes else float(param.element_size())

    def get_quantize_ops(self) -> ConversionOps:
        """Numbers of a file to codes."""
        return _Encode(self)

    def get_weight_conversions(self) -> list[WeightConverter]:
        """Bytes and scales of a file to codes."""
        if not self.pre_quantized:
            return []
        ends = sorted({name.rpartition(".")[2] for name in self._chosen})
        return [
            WeightConverter([rf"{end}{SCALES}$", rf"{end}$"], end, [_PutTogether(self)])
            for end in ends
        ]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # Saving runs them backwards over what get_state_dict_and_metadata writes, and would take
        # bytes for the weights of experts, say. Files in codes have the model's own names.
        model._weight_conversions = []
        config = self.quantization_config
        # Heads that are new, and not in the file; what is a number there stays one.
        skip = [*config.skip, *sorted(self.numbers)]
        convert(model, config.form, skip, config.headroom, strict=not self.pre_quantized)
        read_bytes_into(model)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What is written: bytes and scales in the place of codes, and a note of what they are."""
        state = model.state_dict()
        return flattened(state), note_of(state, self.quantization_config.form)

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        restore(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        model._weight_conversions = None  # those of its type again
        return model

    def is_serializable(self) -> bool:
        """True: codes are written as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: Integer Madam steps codes."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: without adapters beside them."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: a compiler decodes where the weights are used."""
        return True


class _Encode(ConversionOps):
    """Numbers to codes."""

    def __init__(self, hf_quantizer: LNSQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    @torch.no_grad()
    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        config = self.hf_quantizer.quantization_config
        return {name: _encoded(_one(value), config) for name, value in input_dict.items()}


class _PutTogether(ConversionOps):
    """Bytes and scales to codes; numbers stay."""

    def __init__(self, hf_quantizer: LNSQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: Any) -> _PutTogether:
        # Transformers has a copy for each weight, and each tells the same quantizer.
        return self

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], *, model: Any, full_layer_name: str, **kwargs: Any
    ) -> dict[str, Any]:
        like = model.get_parameter_or_buffer(full_layer_name)
        given = {pattern.endswith(f"{SCALES}$"): _one(each) for pattern, each in input_dict.items()}
        if True not in given:
            if given[False].dtype is torch.uint8:
                raise FormatError(
                    f"{full_layer_name} is in codes, but its scales are not in the file. It is "
                    "damaged: write or download it again."
                )
            self.hf_quantizer.numbers.add(full_layer_name)
            return {full_layer_name: given[False].to(like.dtype)}
        if False in given and given[True].dim() and len(given[True]) != len(like):
            # Of another head, say: Transformers knows what to do with a wrong shape.
            return {full_layer_name: like.new_empty((len(given[True]),), device="meta")}
        form = self.hf_quantizer.quantization_config.form
        made = restored(given[False], given[True], form, like.shape, like.dtype, full_layer_name)
        return {full_layer_name: nn.Parameter(made)}


def attach(model: Any, config: LNSConfig) -> None:
    """Make a Transformers model that ``compress`` has converted one that was loaded so."""
    model.hf_quantizer = LNSQuantizer(config, pre_quantized=True)
    model.is_quantized, model.quantization_method = True, METHOD
    model.config.quantization_config, model.config._is_quantized = config, True
    model._weight_conversions = []
    read_bytes_into(model)


def detach(model: Any) -> None:
    """The reverse, for ``decompress``."""
    if isinstance(getattr(model, "hf_quantizer", None), LNSQuantizer):
        model.hf_quantizer.remove_quantization_config(model)
        model._weight_conversions = None


def _encoded(value: Tensor, config: LNSConfig) -> Tensor:
    # Of zeros alone no training comes, see convert.
    if not value.count_nonzero():
        return nn.Parameter(value)
    return nn.Parameter(LNSTensor.from_float(value, config.form, config.headroom))


def _one(value: Any) -> Tensor:
    return value[0] if isinstance(value, list) else value


def _all_names(model: nn.Module, skip: Any, strict: bool) -> list[str]:
    """The names of the weights to be in codes, tied ones with all of theirs."""
    chosen = {id(param) for param in to_convert(model, skip, strict=strict).values()}
    every = model.named_parameters(remove_duplicate=False)
    return [name for name, param in every if id(param) in chosen]


def register() -> None:
    """Let ``from_pretrained`` know the method, once."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(LNSConfig)
        register_quantizer(METHOD)(LNSQuantizer)
