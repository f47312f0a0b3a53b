"""The metadata of torch.distributed.checkpoint is read alike, and runs and changes nothing."""

from __future__ import annotations

import copyreg
import pickle
import shutil
import struct
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

from hf_relopt.hf.checkpoints import find_fault
from hf_relopt.hf.shard_metadata import Entry, read_metadata
from tests.hf.prepared import as_global, assert_refused, prepared

# torch says that it saves from a single process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
DCP = b"torch.distributed.checkpoint.metadata\n"
# Tuples, as DCP's planner writes, and whatever else is plain data.
OTHER_DATA = {"a.b": ("a", "b"), "c": [1, 2.5, None, True, b"x", 2**70, {"d": frozenset({3})}]}


def test_a_sound_one_is_whole_and_read_alike(checkpoint):
    assert find_fault(checkpoint) is None
    theirs = FileSystemReader(checkpoint / "optimizer_0").read_metadata()
    ours = read_metadata(checkpoint / "optimizer_0")
    kinds = theirs.state_dict_metadata
    assert ours.is_tensor == {key: isinstance(kinds[key], TensorStorageMetadata) for key in kinds}
    assert set(ours.is_tensor.values()) == {True, False}
    assert ours.entries == [
        Entry(key.fqn, info.relative_path, info.offset, info.length, ours.is_tensor[key.fqn])
        for key, info in theirs.storage_data.items()
    ]


@pytest.mark.parametrize(("change", "protocol"), [
    *[({"storage_meta": StorageMeta(Path("run") / "optimizer_0", modules=["torch"])}, protocol)
      for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)],
    ({"storage_meta": None, "planner_data": OTHER_DATA, "version": "1"}, 4), ({"new": {1, 2}}, 4),
])  # fmt: skip
def test_what_else_a_writer_may_put_there_is_no_fault(change, protocol, checkpoint):
    folder = checkpoint / "optimizer_0"
    metadata = FileSystemReader(folder).read_metadata()
    vars(metadata).update(change)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol))
    assert find_fault(checkpoint) is None


def test_an_enum_may_be_pickled_by_name(checkpoint):
    """As some releases of Python do."""
    folder = checkpoint / "optimizer_0"
    content = (folder / ".metadata").read_bytes()
    pre = b"cbuiltins\ngetattr\n(c" + DCP + b"_MEM_FORMAT_ENCODING\nVTORCH_CHANNELS_LAST\ntR0"
    (folder / ".metadata").write_bytes(pre + content)
    assert find_fault(checkpoint) is None
    (folder / ".metadata").write_bytes(pre.replace(b"TORCH_CHANNELS_LAST", b"__class__") + content)
    assert "builtins.getattr" in find_fault(checkpoint)


@pytest.mark.parametrize("part", ["optimizer_0", "pytorch_model_fsdp_0"])
@pytest.mark.parametrize("name", [".metadata", "__0.metadata"])
def test_metadata_runs_nothing(part, name, checkpoint, trap):
    if part != "optimizer_0":
        shutil.copytree(checkpoint / "optimizer_0", checkpoint / part)
    (checkpoint / part / name).write_bytes(prepared(trap))
    assert_refused(checkpoint, trap, part, "metadata", "mkdir")


@pytest.mark.parametrize(("module", "name"), [
    ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "load"),
    ("torch", "compile"), ("torch.serialization", "load"), ("torch.hub", "load"),
    ("torch.distributed.checkpoint.metadata", "os.system"),
    ("torch.distributed.checkpoint.filesystem", "os"), ("pathlib", "os"),
    ("torch.distributed.checkpoint.filesystem", "FileSystemReader"), ("collections", "abc"),
])  # fmt: skip
def test_no_name_leads_out_of_the_metadata(module, name, checkpoint, trap):
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(as_global(module, name, f"touch {trap}"))
    assert_refused(checkpoint, trap, ".metadata cannot be read", f"{module}.{name}")


@pytest.mark.parametrize("content", [
    b"", b"text", b"\x80\x05", pickle.dumps(None), pickle.dumps([1]), pickle.dumps({}),
    b"(" * 100_000, b"]" + b"(l" * 50_000 + b".", b"\x8e" + b"\xff" * 8,
    b"\x80\x04\x95" + b"\xff" * 8,
])  # fmt: skip
def test_garbage_in_the_metadata_is_a_fault(content, checkpoint, trap):
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(content)
    assert_refused(checkpoint, trap, "optimizer_0", ".metadata cannot be read")


# What a stream may do beside making the data: each is put before a sound one, and thrown away.
BESIDE = {
    "a class is renamed": b"c" + DCP + b"BytesStorageMetadata\n"
    b"N}X\x08\0\0\0__name__X\x15\0\0\0TensorStorageMetadatas\x86b",
    "a class compares otherwise": b"c" + DCP + b"MetadataIndex\n"
    b"N}X\x06\0\0\0__eq__ctorch.serialization\n_get_layout\ns\x86b",
    "a class's fields": b"c" + DCP + b"MetadataIndex\n}X\x03\0\0\0fqnX\x01\0\0\0xsb",
    "a path": b"cpathlib\nPurePosixPath\nN}X\x04\0\0\0nameX\x01\0\0\0xs\x86b",
    "a function": b"ctorch.serialization\n_get_layout\nN}X\x05\0\0\0cacheNs\x86b",
    "a dtype": b"ctorch\nfloat32\nN}X\x01\0\0\0xNs\x86b",
    "sizes": b"ctorch\nSize\n)\x85R}X\x01\0\0\0xNsb",
    "an object's class": b"c" + DCP + b"BytesStorageMetadata\n)\x81N}X\x09\0\0\0__class__c"
    + DCP + b"TensorStorageMetadata\ns\x86b",
    "hidden fields": b"c" + DCP + b"StorageMeta\n)\x81}X\x09\0\0\0__class__Nsb",
    "fields given twice": b"c" + DCP + b"StorageMeta\n)\x81}b}b",
    "an argument of a record": b"c" + DCP + b"StorageMeta\nN\x85\x81",
    "a record that is called": b"c" + DCP + b"StorageMeta\n)R",
    "a record by OBJ": b"(c" + DCP + b"StorageMeta\no",
    "a record by INST": b"(i" + DCP + b"StorageMeta\n",
    "a value that is sharded_run": b"ctorch\nSize\n)\x81",
    "a call of another kind": b"ctorch.serialization\n_get_layout\nN\x85R",
    "an extension code": b"\x82\x01",
    "a persistent id": b"Pname\n",
    "a huge number of things to remember": b"Nr\xff\xff\xff\x7f",
}  # fmt: skip
NAMED = [vars(dcp_metadata)[name] for name in dcp_metadata.__all__]
NAMED += [Path, type(Path()), PurePosixPath, PureWindowsPath, torch.serialization._get_layout]


@pytest.mark.parametrize("how", BESIDE)
def test_the_metadata_changes_nothing_in_this_process(how, checkpoint, trap):
    """The stand-ins of a file refuse what the real classes would take."""
    before = [dict(vars(thing)) for thing in NAMED]
    file = checkpoint / "optimizer_0" / ".metadata"
    file.write_bytes(b"\x80\x02" + BESIDE[how] + b"0" + file.read_bytes())
    assert "optimizer_0: .metadata cannot be read" in find_fault(checkpoint)
    assert [dict(vars(thing)) for thing in NAMED] == before
    assert Path("/a/b").name == "b"


def test_an_extension_code_of_this_process_is_not_followed(checkpoint, trap):
    file = checkpoint / "optimizer_0" / ".metadata"
    copyreg.add_extension("os", "mkdir", 240)
    try:
        call = b"\x82\xf0X" + struct.pack("<I", len(str(trap))) + str(trap).encode() + b"\x85R"
        pickle.loads(call + b".")  # from now on the code is known without asking for its name
        trap.rmdir()
        file.write_bytes(call + b"0" + file.read_bytes())
        assert_refused(checkpoint, trap, ".metadata cannot be read", "EXT1")
    finally:
        copyreg.remove_extension("os", "mkdir", 240)


@pytest.mark.parametrize("part", [
    "storage_meta", "state_dict_metadata", "storage_data", "kind", "name", "key", "info",
])  # fmt: skip
@pytest.mark.parametrize("wrong", [StorageMeta, None, 5, StorageMeta(), [], torch.float32])
def test_metadata_of_another_build_is_a_fault(part, wrong, checkpoint):
    """torch sets an attribute on some of it, and takes all but bytes for tensors."""
    folder = checkpoint / "optimizer_0"
    metadata = FileSystemReader(folder).read_metadata()
    kinds, places = metadata.state_dict_metadata, metadata.storage_data
    name, key = next(iter(kinds)), next(iter(places))
    if part == "kind":
        kinds[name] = wrong
    elif part in ("name", "key") and wrong.__hash__ is None:
        return
    elif part == "name":
        kinds[wrong] = kinds.pop(name)
    elif part == "key":
        places[wrong] = places.pop(key)
    elif part == "info":
        places[key] = wrong
    else:
        setattr(metadata, part, wrong)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    sound = part == "storage_meta" and (wrong is None or wrong == StorageMeta())
    fault = find_fault(checkpoint)
    assert fault is None if sound else "optimizer_0: .metadata cannot be read" in fault
