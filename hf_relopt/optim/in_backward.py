"""Steps inside the backward pass: a weight is stepped when its gradient is complete, and no later.

The gradient is dropped at once, so that those of a whole model never exist together.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from hf_relopt.errors import ConfigError, UnsupportedSetup
from hf_relopt.optim import inputs
from hf_relopt.sharding.layout import is_sharded, local
from hf_relopt.sharding.ranks import rank_and_count

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from hf_relopt.optim.base import RelativeOptimizer

# Who steps a weight: the optimizer that was made last. Weights are not told: they are pickled.
_OWNERS: Any = WeakTensorKeyDictionary()


class InBackward:
    """The hooks of one optimizer, and what has been stepped since its last ``step()``."""

    def __init__(self, optimizer: RelativeOptimizer) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._handles: dict[Tensor, RemovableHandle] = {}
        # Autograd has a thread for each device.
        self._lock = threading.RLock()
        self._waiting: list[Tensor] = []
        self._storage = 0
        self.stepped: set[Tensor] = set()
        # Are options and weights looked at already in this round?
        self.goes_on = False

    def watch(self, param_groups: Sequence[Mapping[str, Any]]) -> None:
        """Have a hook on each weight of the groups that ask for it, and on no other."""
        asked = [group for group in param_groups if group.get("step_in_backward")]
        if not asked and not self._handles:
            return
        wanted = {param for group in asked for param in group["params"]}
        for param in set(self._handles) - wanted:
            self.let_go(param)
        for param in wanted - set(self._handles):
            # Others have none yet, as of lazy modules, or frozen ones that may be thawed.
            if param.requires_grad and param.is_leaf and not is_lazy(param):
                self._take(param)

    def let_go(self, param: Tensor) -> None:
        """Remove the hook of a weight."""
        self._handles.pop(param).remove()
        _OWNERS.pop(param, None)

    def begin(self) -> None:
        """A new round: no weight has been stepped yet."""
        with self._lock:
            self.stepped.clear()
            self._waiting.clear()
            self.goes_on = False

    def _take(self, param: Tensor) -> None:
        owner = _OWNERS[param]() if param in _OWNERS else None
        if owner is not None:
            owner.let_go(param)
        me = weakref.ref(self)

        def hook(param: Tensor) -> None:
            watcher = me()
            if watcher is not None:
                watcher._arrived(param)

        self._handles[param] = param.register_post_accumulate_grad_hook(hook)
        _OWNERS[param] = me

    def _arrived(self, param: Tensor) -> None:
        """Step a weight whose gradient is complete."""
        with self._lock:
            if param in self.stepped:
                raise ConfigError(_TWICE.format(name=self._name_of(param)))
            if is_sharded(param):
                self._wait_for_its_unit(param)
            elif rank_and_count()[1] > 1:
                raise UnsupportedSetup(REPLICAS)
            else:
                self._step_now([param])
            self.stepped.add(param)

    def _wait_for_its_unit(self, param: Tensor) -> None:
        """FSDP2 reduces the gradients of a unit together: their norms meet in one all-reduce.

        They are parts of one buffer. The last unit is stepped when the backward pass ends. Every
        rank has the same weights in the same order.
        """
        assert param.grad is not None
        storage = local(param.grad).untyped_storage().data_ptr()
        if self._waiting and storage != self._storage:
            self._step_waiting()
        if not self._waiting:
            # torch has no public name for it; FSDP2 ends its own backward pass so.
            torch.autograd.Variable._execution_engine.queue_callback(self._step_waiting)
        self._storage = storage
        self._waiting.append(param)

    def _step_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._step_now(waiting)

    def _name_of(self, param: Tensor) -> str:
        optimizer = self._optimizer()
        for group in optimizer.param_groups if optimizer is not None else ():
            for own, name in zip(group["params"], inputs.names(group), strict=True):
                if own is param:
                    return name
        return "a weight"

    def _step_now(self, params: Sequence[Tensor]) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer.step_some(params)


_TWICE = (
    "step_in_backward has stepped {name} already, and it has got another gradient before step(). "
    "Gradients are not kept, so they cannot be accumulated: call step() after each backward(), and "
    "use larger batches in place of gradient accumulation. (Re-entrant checkpointing of a weight "
    "that is used twice: pass use_reentrant=False. To leave out a step: call zero_grad().)"
)
REPLICAS = (
    "step_in_backward is True where each of several processes has all weights: they would step "
    "before DDP has averaged their gradients. Use FSDP2, or leave step_in_backward out."
)
