"""Trainers that make param groups of their own, as known ones do, and what they get."""

from __future__ import annotations

from transformers import Trainer

from tests.hf.tiny import arguments, gpt2, rows

NAMES = ("fromage", "madam", "fromage_spectral")


def split(trainer, **own):
    """The two groups of the stock Trainer, with more in each of them."""
    decayed = trainer.get_decay_parameter_names(trainer.model)
    named = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in named if (n in decayed) == decays], "weight_decay": 0.0, **own}
        for decays in (True, False)
    ]


class Caller(Trainer):
    """Asks without its model, as most do."""

    def groups(self):
        return split(self)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = cls(self.groups(), **kwargs)
        return self.optimizer


def facts(optimizer):
    """Each weight's options, by name, without what only says where it came from."""
    hidden = ("params", "param_names", "shapes_crc32", "weight_decay", "name")
    return {
        name: {key: value for key, value in group.items() if key not in hidden}
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def asked(trainer, tmp_path, model=None, **given):
    """A trainer's optimizer, and the one that the plan of the same model gives."""
    args = arguments(tmp_path, **given)
    model = model or gpt2()
    job = trainer(model, args, train_dataset=rows())
    optimizer = job.create_optimizer()
    return job, optimizer
