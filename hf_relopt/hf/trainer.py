"""RelOptTrainer: a Trainer with telemetry and safe resuming for relative-update optimizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.utils import is_sagemaker_mp_enabled, is_torch_xla_available

from hf_relopt.errors import ConfigError, RelOptError
from hf_relopt.hf import arguments, guards
from hf_relopt.hf.across_modes import (
    is_of_fsdp,
    load_across,
    put_weights,
    state_names,
    weights_to_carry,
)
from hf_relopt.hf.callbacks import RelOptCallback, unwrapped, will_log
from hf_relopt.hf.card_file import own_card_kept
from hf_relopt.hf.checkpoints import (
    last_complete_checkpoint,
    require_complete,
    require_own_kind,
)
from hf_relopt.hf.compression import compress
from hf_relopt.hf.log import logger
from hf_relopt.hf.model_card import card_at_end, write_model_card
from hf_relopt.hf.run_record import RunRecord, is_of_search
from hf_relopt.hf.saved_weights import check_held, check_weights
from hf_relopt.hf.schedule import check_schedule, in_plain_numbers, load_schedule, take_place
from hf_relopt.hf.together import on_main_process
from hf_relopt.lns.format import LNSFormat, format_of
from hf_relopt.optim.checkpoint import kept


class RelOptMixin:
    """Mixin for a Trainer class: ``class MyTrainer(RelOptMixin, Seq2SeqTrainer)``.

    Adds to the stock Trainer: telemetry with each logging step (see ``RelOptCallback``), no
    gradient clipping where it has no effect, and ``train(resume_from_checkpoint=True)`` that
    resumes from the last complete checkpoint, or starts from step 0 if there is none. Other
    optimizers train as in the stock Trainer.

    The main process writes ``relopt_run.json`` into ``output_dir`` when training begins and
    completes it at the end, when it also writes the model card, ``README.md``.

    Args:
        lns_format: store the model's matrices and embeddings in codes of this format before
            training, as ``hf_relopt.compress`` does, for ``--optim integer_madam``.

    Attributes:
        model_card_at_end: set it to False for no card at the end of ``train``. A README.md that
            somebody else wrote, or that was changed by hand, is kept in any case.
    """

    model_card_at_end: bool = True

    def __init__(
        self, *args: Any, lns_format: str | LNSFormat | None = None, **kwargs: Any
    ) -> None:
        self._lns_format = None if lns_format is None else format_of(lns_format)
        super().__init__(*args, **kwargs)
        me: Any = self
        self._compress(me.model)
        self._checked: Any = None
        self._discard = False
        RelOptCallback.add_to(self, by_default=True)
        self._record = RunRecord.add_to(self)

    def call_model_init(self, *args: Any, **kwargs: Any) -> Any:
        """Make the model as Trainer does, and store it in codes if that was asked for."""
        return self._compress(super().call_model_init(*args, **kwargs))  # type: ignore[misc]

    def _compress(self, model: Any) -> Any:
        return model if self._lns_format is None else compress(model, self._lns_format)

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        *args: Any,
        discard_optimizer_state: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Train; arguments as for Trainer.

        Args:
            resume_from_checkpoint: the folder of a complete checkpoint. True: the last complete
                checkpoint in ``output_dir``; without one, training starts from step 0.
            args: other arguments as for Trainer.
            kwargs: the same, by name.
            discard_optimizer_state: resume with a fresh optimizer state, for a checkpoint of
                another optimizer or one with only weights. Weights, data and schedule are resumed;
                the norms that ``p_bound`` and ``bound`` refer to are those of the resumed weights.

        Raises:
            FormatError: the checkpoint is not complete, or holds only weights.
            ConfigError: the checkpoint is another optimizer's, and its state is not discarded.
        """
        self._discard = discard_optimizer_state
        if resume_from_checkpoint is True:
            output_dir = self.args.output_dir  # type: ignore[attr-defined]
            resume_from_checkpoint = on_main_process(
                lambda: last_complete_checkpoint(output_dir, weights_alone=self._discard)
            )
            if resume_from_checkpoint is None:
                logger.info(
                    "no complete checkpoint in %s: training starts from step 0.", output_dir
                )
            else:
                logger.info("resuming from %s.", resume_from_checkpoint)
        elif isinstance(resume_from_checkpoint, (str, os.PathLike)):
            folder = resume_from_checkpoint = os.fspath(resume_from_checkpoint)
            on_main_process(lambda: require_complete(folder, weights_alone=self._discard))
        if isinstance(resume_from_checkpoint, str) and not self._discard and self._is_plain():
            require_own_kind(resume_from_checkpoint)
        self._record.resumed_from = resume_from_checkpoint or None
        result = super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        # The trials of a search share a folder, and none of them is the model that is kept.
        searches = getattr(self, "hp_search_backend", None) is not None
        is_trial = searches or is_of_search(self.state)  # type: ignore[attr-defined]
        if self.model_card_at_end and not is_trial and self.is_world_process_zero():  # type: ignore[attr-defined]
            card_at_end(self)
        return result

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        if not (hasattr(self.model, "peft_config") and self.is_world_process_zero()):  # type: ignore[attr-defined]
            super()._save(output_dir, *args, **kwargs)  # type: ignore[misc]
            return
        folder = self.args.output_dir if output_dir is None else output_dir  # type: ignore[attr-defined]
        with own_card_kept(Path(folder)):  # PEFT writes into any card that it finds
            super()._save(output_dir, *args, **kwargs)  # type: ignore[misc]

    def _is_plain(self) -> bool:
        """Whether this run reads the optimizer's state from torch's files, or FSDP's."""
        others = ("is_deepspeed_enabled", "is_fsdp_xla_v1_enabled")
        return not any(getattr(self, name, False) for name in others) and not (
            is_sagemaker_mp_enabled() or is_torch_xla_available()
        )

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        weights = weights_to_carry(checkpoint, fsdp=self.is_fsdp_enabled)  # type: ignore[attr-defined]
        if weights is None or arguments.name_of(self.args) is None:  # type: ignore[attr-defined]
            # A subclass may load in a way of its own, as that of sentence-transformers does.
            stock = super()._load_from_checkpoint  # type: ignore[misc]
            is_stock = getattr(stock, "__func__", None) is Trainer._load_from_checkpoint
            if is_stock and self._is_plain() and not self.is_fsdp_enabled:  # type: ignore[attr-defined]
                check_weights(self.model if model is None else model, checkpoint)  # type: ignore[attr-defined]
            stock(checkpoint, model)
            return
        target = self.model if model is None else model  # type: ignore[attr-defined]
        check_held(target, weights, checkpoint)
        put_weights(target, weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        inner = unwrapped(self.optimizer)  # type: ignore[attr-defined]
        if checkpoint is not None and self._discard:
            logger.info("the optimizer state in %s is discarded, as requested.", checkpoint)
            metric = self.args.metric_for_best_model  # type: ignore[attr-defined]
            take_place(self.lr_scheduler, Path(checkpoint), metric)  # type: ignore[attr-defined]
        elif checkpoint is None or not self._is_plain():
            self._load_state(checkpoint, inner)
        else:
            self._load_with_schedule(checkpoint, inner)

    def _load_with_schedule(self, checkpoint: str, inner: Any) -> None:
        """Load both, and say which schedule cannot be this run's; torch takes any dictionary."""
        scheduler: Any = self.lr_scheduler  # type: ignore[attr-defined]
        fresh = scheduler.state_dict()
        try:
            self._load_state(checkpoint, inner)
        except RelOptError:
            raise
        except Exception:
            check_schedule(scheduler, fresh, Path(checkpoint))
            raise
        check_schedule(scheduler, fresh, Path(checkpoint))

    def _load_state(self, checkpoint: str | None, inner: Any) -> None:
        if checkpoint is None or inner is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        else:
            # torch would look for our names in another optimizer's shards, and fail over them.
            names, own = state_names(checkpoint), kept(inner)
            if names and names != own:
                raise ConfigError(
                    f"{checkpoint} holds the state of another optimizer "
                    f"({', '.join(sorted(names))}), but this one, {type(inner).__name__}, keeps "
                    f"{', '.join(sorted(own))}. Resume with the optimizer that wrote it, or pass "
                    "train(..., discard_optimizer_state=True)."
                )
            sharded: bool = self.is_fsdp_enabled  # type: ignore[attr-defined]
            if is_of_fsdp(checkpoint) not in (None, sharded):
                load_across(self.model, inner, checkpoint, fsdp=sharded)  # type: ignore[attr-defined]
                load_schedule(self.lr_scheduler, Path(checkpoint))  # type: ignore[attr-defined]
                return
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        in_plain_numbers(self.lr_scheduler)  # type: ignore[attr-defined]
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """One step as in Trainer; checks the model before the first step.

        Raises:
            UnsupportedSetup: each of several processes would train its own copy.
        """
        if model is not self._checked:
            guards.check_replicas(model)
            self._checked = model
        return super().training_step(model, *args, **kwargs)  # type: ignore[misc]

    def create_model_card(self, language: Any = None, **details: Any) -> None:
        """Write the model card; the stock one would describe Madam as Adam.

        Args:
            language: language of the data, as for Trainer.
            details: other arguments as for Trainer, or fields of hf.model_card.CardDetails.
        """
        if unwrapped(self.optimizer) is None:  # type: ignore[attr-defined]
            # By name: TRL's trainers have other arguments, in another order.
            said = {} if language is None else {"language": language}
            super().create_model_card(**said, **details)  # type: ignore[misc]
        elif self.is_world_process_zero():  # type: ignore[attr-defined]
            write_model_card(self, language=language, **details)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the telemetry of the step if it was measured."""
        if "loss" in logs:
            # Before a Trainer's own log() looks at them; the callback would add them after that.
            for callback in self.callback_handler.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RelOptCallback):
                    logs.update(callback.measured(self.state, logs))  # type: ignore[attr-defined]
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _clipping_is_pointless(self) -> bool:
        inner = unwrapped(self.optimizer)  # type: ignore[attr-defined]
        return inner is not None and arguments.clipping_is_pointless(inner.param_groups)

    def _will_log(self) -> bool:
        loader = self.callback_handler.train_dataloader  # type: ignore[attr-defined]
        return will_log(self.args, self.state, loader)  # type: ignore[attr-defined]

    def _clip_grad_norm(self, model: Any) -> Any:
        if self._clipping_is_pointless():
            return None
        return super()._clip_grad_norm(model)  # type: ignore[misc]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Trainer computes a norm in every step even without clipping; here, only to log it.
        if self._clipping_is_pointless() and not self._will_log():
            return None
        return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]


class RelOptTrainer(RelOptMixin, Trainer):
    """Drop-in replacement for Trainer, with the same arguments; see ``RelOptMixin``."""
