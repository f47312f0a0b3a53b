"""Read the ``.metadata`` of torch.distributed.checkpoint without using its classes.

``.metadata`` is a pickle, and torch unpickles it without restriction. Here no name in it is looked
up: each becomes a stand-in that only records what it is given, and is made anew for each file. So
reading a prepared file neither runs code nor changes a class of this process. A file is read only
if the real classes, given the same, would do no more than keep it: that is what torch does next.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

_METADATA = "torch.distributed.checkpoint.metadata"
_PROPERTIES = (_METADATA, "TensorProperties")
_MEMORY_FORMATS = {
    "TORCH_CONTIGUOUS_FORMAT",
    "TORCH_CHANNELS_LAST",
    "TORCH_PRESERVE_FORMAT",
}
# Classes of data, pickled as an empty object and the values of its fields.
_RECORDS = {
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorStorageMetadata"),
    _PROPERTIES,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}


def _words(*args: Any) -> bool:
    return all(type(arg) is str for arg in args)


def _a_word(*args: Any) -> bool:
    return len(args) == 1 and _words(*args)


def _a_number(*args: Any) -> bool:
    return len(args) == 1 and type(args[0]) is int


def _sizes(*args: Any) -> bool:
    return len(args) == 1 and type(args[0]) is tuple and all(type(one) is int for one in args[0])


def _a_memory_format(*args: Any) -> bool:
    """Some releases of Python pickle an enum's member as getattr(enum, name)."""
    return (
        len(args) == 2
        and getattr(args[0], "origin", None) == (_METADATA, "_MEM_FORMAT_ENCODING")
        and _words(args[1])
        and args[1] in _MEMORY_FORMATS
    )


# What is pickled as a call, and which arguments it has in a checkpoint.
_CALLS: Mapping[tuple[str, str], Callable[..., bool]] = {
    ("torch", "Size"): _sizes,
    # A function from a name to a layout, which is how torch pickles one.
    ("torch.serialization", "_get_layout"): _a_word,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _a_number,
    ("builtins", "getattr"): _a_memory_format,
    # The folder's own place when it was written.
    **{
        (module, name): _words
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
# What a pickle of such data consists of. Not: extension codes, persistent ids, and calls other
# than REDUCE.
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "BINGET",
    "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "NEWOBJ",
    "REDUCE", "BUILD",
}  # fmt: skip


class _StandIn(type):
    """The class of a class or function in a pickle: nothing can be set on it."""

    origin: tuple[str, str]
    takes: Callable[..., bool] | None

    def __call__(cls, *args: Any) -> Any:
        if cls.takes is None or not cls.takes(*args):
            raise _refused(cls, "called as in no checkpoint")
        return object.__new__(cls)  # type: ignore[arg-type]

    def __setattr__(cls, name: str, value: Any) -> None:
        raise _refused(cls, "changed")

    # A property, so that pickle finds it before that of the instances.
    @property
    def __setstate__(cls) -> Any:
        raise _refused(cls, "changed")


class _Made(metaclass=_StandIn):
    """An object that the pickle makes: a record of its fields, or what a call has returned."""

    __slots__ = ("fields",)

    origin = ("", "")
    takes = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.takes is not None or args or kwargs:
            raise _refused(cls, "made as in no checkpoint")
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        # Given twice, a key of a dictionary would not lie where it was put.
        if self.takes is not None or hasattr(self, "fields"):
            raise _refused(type(self), "changed")
        if self.origin == _PROPERTIES:
            if type(state) is not tuple:
                raise _refused(type(self), "filled as in no checkpoint")
            self.fields: dict[str, Any] = {}
            return
        # A tuple would set attributes, __class__ too, where a dictionary only fills fields.
        if type(state) is not dict or not all(_is_field(name) for name in state):
            raise _refused(type(self), "filled as in no checkpoint")
        self.fields = dict(state)


class _Value:
    """Something that is its name: a dtype."""

    __slots__ = ("origin",)

    def __init__(self, module: str, name: str) -> None:
        self.origin = module, name

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"it has {'.'.join(self.origin)} changed")


def _is_field(name: Any) -> bool:
    return type(name) is str and name.isidentifier() and not name.startswith("_")


def _refused(cls: _StandIn, how: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"it has {'.'.join(cls.origin)} {how}")


class _Recorder(pickle.Unpickler):
    """Unpickles stand-ins. It is C's unpickler, as torch's is, so both read the same."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._known: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        # No dotted names: they would reach through a class to what its module has imported.
        origin = (module, name)
        if origin not in self._known:
            self._known[origin] = _stand_in(origin)
        return self._known[origin]


def _stand_in(origin: tuple[str, str]) -> Any:
    if origin in _RECORDS or origin in _CALLS:
        takes = _CALLS.get(origin)
        held = {"origin": origin, "takes": staticmethod(takes) if takes else None, "__slots__": ()}
        return _StandIn(origin[1], (_Made,), held)
    module, name = origin
    if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
        return _Value(module, name)
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


def _check_opcodes(content: bytes) -> None:
    for count, (opcode, arg, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses {opcode.name}, which no checkpoint needs")
        # Pickle numbers what it remembers from 0. A high number would take that much memory.
        if opcode.name in ("BINPUT", "LONG_BINPUT") and (arg or 0) > count:
            raise pickle.UnpicklingError(f"it remembers object {arg} after {count} steps")


class Entry(NamedTuple):
    """Where one entry of a folder lies."""

    name: str
    file: str
    offset: int
    length: int
    is_tensor: bool


class Metadata(NamedTuple):
    """What is in a folder that torch.distributed.checkpoint wrote."""

    # By name: True for a tensor, False for anything else, which torch unpickles unrestricted.
    is_tensor: dict[str, bool]
    entries: list[Entry]


def read_metadata(folder: Path, name: str = ".metadata") -> Metadata:
    """Read what torch.distributed.checkpoint wrote into ``folder``; runs and changes nothing.

    Raises:
        FileNotFoundError: there is none.
        Exception: whatever reading half a file, or a prepared one, comes to.
    """
    content = (folder / name).read_bytes()
    _check_opcodes(content)
    held = _fields(_Recorder(content).load(), "Metadata")
    if held.get("storage_meta") is not None:
        _fields(held["storage_meta"], "StorageMeta")
    is_tensor = {}
    for key, kind in _items(held, "state_dict_metadata"):
        if type(key) is not str:
            raise ValueError(f"an entry's name is a {type(key).__name__}")
        origin = getattr(kind, "origin", None)
        if not isinstance(kind, _Made) or origin not in (
            (_METADATA, "TensorStorageMetadata"),
            (_METADATA, "BytesStorageMetadata"),
        ):
            raise ValueError(f"{key} is neither a tensor nor bytes")
        is_tensor[key] = origin == (_METADATA, "TensorStorageMetadata")
    entries = [_entry(key, info, is_tensor) for key, info in _items(held, "storage_data")]
    return Metadata(is_tensor, entries)


def _items(held: dict[str, Any], name: str) -> list[tuple[Any, Any]]:
    found = held.get(name)
    if type(found) is not dict:
        raise ValueError(f"its {name} is no dictionary")
    return list(found.items())


def _fields(made: Any, name: str) -> dict[str, Any]:
    """The fields of an object of that class."""
    if not isinstance(made, _Made) or made.takes is not None or made.origin[1] != name:
        raise ValueError(f"it holds {type(made).__name__} in place of {name}")
    return getattr(made, "fields", {})


def _entry(key: Any, info: Any, is_tensor: dict[str, bool]) -> Entry:
    name = _fields(key, "MetadataIndex").get("fqn")
    if type(name) is not str:
        raise ValueError(f"an entry's name is a {type(name).__name__}")
    held = _fields(info, "_StorageInfo")
    file, offset, length = held.get("relative_path"), held.get("offset"), held.get("length")
    if type(file) is not str or Path(file).name != file or file in ("", ".", ".."):
        raise ValueError(f"an entry lies in {file!r}, which is no file of this folder")
    if not (type(offset) is type(length) is int and offset >= 0 and length >= 0):
        raise ValueError(f"an entry of {file} lies at {offset!r} and is {length!r} long")
    if held.get("transform_descriptors"):
        raise ValueError(f"{file} was transformed when it was written, and cannot be checked")
    return Entry(name, file, offset, length, is_tensor.get(name, False))
