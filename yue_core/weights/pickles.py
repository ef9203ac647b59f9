"""Tensors out of a PyTorch pickle, without running anything that the pickle asks for.

A `torch.save` file is a zip archive: `data.pkl` describes the objects, `data/<key>` holds each storage's bytes.
The description is read by an unpickler that knows tensors and plain containers. Everything else that it names, such
as configuration objects, becomes an inert placeholder: nothing is imported and nothing is called. A pickle that names
functions of Python itself (`os.system`, `eval` ...) is refused, as no checkpoint needs them.
"""

from __future__ import annotations

import collections
import io
import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yue_core.errors import WeightsError

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
PLAIN_TYPES = {"dict", "list", "set", "frozenset", "tuple", "int", "float", "complex", "str", "bool", "bytes"}
DATA_MODULES = {"typing", "collections", "argparse", "pathlib", "enum", "datetime", "_codecs", "copyreg"}


@dataclass(frozen=True)
class Storage:
    """One record of the archive."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Described:
    """A tensor that was not read yet."""

    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """Stands for any object that is not a tensor; takes whatever a pickle does to it and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return self

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...

    def add(self, value: object) -> None: ...


def _describe(storage: Storage, offset: int, shape: Any, stride: Any, *_: object) -> Described:
    return Described(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: Described, *_: object) -> Described:
    return data


KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _describe,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class TensorUnpickler(pickle.Unpickler):
    """Builds containers and `Described` tensors, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What a global of the pickle becomes; raises WeightsError for one that is not data."""
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        module, name = NAME_MAPPING.get((module, name), (module, name))  # protocol 2, PyTorch's default,
        module = IMPORT_MAPPING.get(module, module)  # writes names of the standard library as they once were
        package = module.split(".")[0]
        if package not in sys.stdlib_module_names or package in DATA_MODULES:
            return Inert
        if module == "builtins" and name in PLAIN_TYPES:
            return Inert
        raise WeightsError(
            f"The pickle asks for {module}.{name}, which is not a tensor; it was not opened, fetch it again."
        )

    def persistent_load(self, pid: Any) -> Storage:
        """A reference to a record: ("storage", type, key, device, elements)."""
        _, dtype, key, *_ = pid
        if not isinstance(dtype, torch.dtype):
            raise WeightsError(f"The pickle stores tensors of an unknown type ({dtype}); fetch it again.")
        return Storage(str(key), dtype)


class TensorArchive:
    """A `torch.save` file, opened for reading; `content` has a `Described` wherever a tensor is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
            (description,) = (name for name in self._zip.namelist() if name.endswith("/data.pkl"))
            self._prefix = description.removesuffix("data.pkl")
            self.content: Any = TensorUnpickler(io.BytesIO(self._zip.read(description))).load()
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        except Exception as error:  # a broken pickle can fail in any way
            raise WeightsError(f"{path} is not a PyTorch checkpoint ({error}); fetch it again.") from error

    def __enter__(self) -> TensorArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, described: Described) -> Tensor:
        """One tensor, contiguous, in memory of its own."""
        data = bytearray(self._zip.read(f"{self._prefix}data/{described.storage.key}"))
        flat = torch.frombuffer(data, dtype=described.storage.dtype)
        try:
            return flat.as_strided(described.shape, described.stride, described.offset).contiguous()
        except RuntimeError as error:
            raise WeightsError(f"{self._path} has a tensor outside its storage; fetch it again.") from error

    def read_all(self, tensors: Mapping[str, object]) -> dict[str, Tensor]:
        """All tensors of a flat state dict; raises WeightsError when something else is in it."""
        others = [name for name, value in tensors.items() if not isinstance(value, Described)]
        if others:
            raise WeightsError(f"{self._path}: {others[0]} is not a tensor; fetch it again.")
        return {name: self.read(value) for name, value in tensors.items() if isinstance(value, Described)}
