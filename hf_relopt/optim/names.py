"""Weights of a checkpoint, found by name where both sides have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from hf_relopt.errors import ConfigError
from hf_relopt.optim.inputs import shape_of, shapes_crc32

# What DDP, torch.compile and FSDP put into names; the weight is the same.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def in_own_order(
    own: Sequence[Mapping[str, Any]], saved: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """``saved`` groups, and the weights in each, in the order of the ``own`` ones.

    Groups without names, and those in which no name is known, stay as they are: torch goes by the
    order then.

    Args:
        saved: with ``params`` as keys of the state, as state dicts have them.

    Raises:
        ConfigError: the same weights are grouped otherwise, or only some names are known and not
            where they were.
    """
    own_names, saved_names = _names(own), _names(saved)
    if not own_names or not saved_names or own_names == saved_names:
        return list(saved)
    if set(chain(*own_names)).isdisjoint(chain(*saved_names)):
        # One of the two models may have been part of another.
        own_names, saved_names = _without_prefix(own_names), _without_prefix(saved_names)
    homes = {name: (g, i) for g, names in enumerate(saved_names) for i, name in enumerate(names)}
    flat = list(chain(*own_names))
    if homes.keys().isdisjoint(flat):
        return list(saved)
    if len(homes) != sum(map(len, saved_names)) or len(set(flat)) != len(flat):
        return list(saved)  # a name that stands for two weights finds neither
    if set(flat) != homes.keys():
        _require_same_places(flat, [name for names in saved_names for name in names])
        return list(saved)
    return [
        _gathered(group, names, saved, homes) for group, names in zip(own, own_names, strict=True)
    ]


def _gathered(
    own: Mapping[str, Any],
    names: Sequence[str],
    saved: Sequence[dict[str, Any]],
    homes: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """The saved group that has these weights, in their order."""
    where = {homes[name][0] for name in names}
    group = saved[min(where)]
    if len(where) > 1 or len(group["params"]) != len(names):
        raise ConfigError(
            f"This checkpoint groups its weights differently: {names[0]} and {len(names) - 1} "
            "others are one group here. Load it with the plan that it was saved with."
        )
    places = [homes[name][1] for name in names]
    from_place = dict(zip(places, own["params"], strict=True))
    in_saved_order = [shape_of(from_place[place]) for place in range(len(names))]
    result = {
        **group,
        "params": [group["params"][place] for place in places],
        "param_names": list(own["param_names"]),
    }
    if group.get("shapes_crc32") == shapes_crc32(in_saved_order):
        result["shapes_crc32"] = own["shapes_crc32"]
    return result


def _require_same_places(own: Sequence[str], saved: Sequence[str]) -> None:
    """Where only some names are known, these must be where they were."""
    places = {name: place for place, name in enumerate(saved)}
    for place, name in enumerate(own):
        if places.get(name, place) != place:
            raise ConfigError(
                f"This checkpoint has {name} as its weight {places[name]}, this optimizer as its "
                f"weight {place}, and other names differ, so its state would go to the wrong "
                "weights. Load it into the model it was saved from."
            )


def _names(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The names of each group's weights without wrappers; empty if one has none."""
    found = []
    for group in groups:
        names = group.get("param_names")
        if not isinstance(names, (list, tuple)) or len(names) != len(group["params"]):
            return []
        found.append([_bare(str(name)) for name in names])
    return found


def _without_prefix(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Names without the modules that all of them begin with."""
    split = [[name.split(".") for name in names] for names in groups]
    every = [parts for names in split for parts in names]
    shared = 0
    while all(len(parts) > shared + 1 for parts in every) and (
        len({parts[shared] for parts in every}) == 1
    ):
        shared += 1
    return [[".".join(parts[shared:]) for parts in names] for names in split]


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
