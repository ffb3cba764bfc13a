"""How what NumPy, PyTorch, pandas, polars and other libraries have is copied."""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from background._snapshot.objects import (
    copy_by_hook,
    copy_by_reduce,
    pass_and_tell,
    shared_packages,
)
from background._snapshot.snapshot import (
    Memo,
    atoms,
    by_name,
    copy_attributes,
    copy_part,
    pass_on,
    remember,
)

__all__ = [
    "copy_array",
    "copy_array_array",
    "copy_pandas",
    "copy_polars",
    "copy_tensor",
    "copy_void",
]


def copy_array(value: Any, memo: Memo) -> Any:
    copy = value.copy("K")
    ndarray = sys.modules["numpy"].ndarray
    if type(value) is not ndarray or value.dtype.hasobject:
        remember(value, copy, memo)
        if value.dtype.kind in "OV" and value.dtype.hasobject:
            copy_elements(copy.view(ndarray), memo)
        if attributes := getattr(value, "__dict__", None):
            # NumPy has set those that the class tells it to, most of them as they are.
            copies = vars(copy)
            for name, item in dict(attributes).items():
                if copies.get(name, item) is item:
                    copies[name] = copy_part(item, memo)
    return copy


def copy_elements(array: Any, memo: Memo) -> None:
    """Replace the objects in an array by their copies, in place."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            if array.dtype[name].hasobject:
                copy_elements(array[name], memo)
    else:
        # It takes and leaves any object, whatever the shape: an index would unpack sequences.
        each = sys.modules["numpy"].frompyfunc(partial(copy_part, memo=memo), 1, 1)
        each(array, out=array)


def copy_void(value: Any, memo: Memo) -> Any:
    """Copy a row of a structured array, which is a view of it."""
    return copy_array(sys.modules["numpy"].array(value), memo)[()]


def copy_tensor(value: Any, memo: Memo) -> Any:
    try:
        copy = value.detach().clone()
    except Exception:  # one without data yet
        return copy_by_hook(value, memo)
    remember(value, copy, memo)
    if (value.is_leaf or value.retains_grad) and value.grad is not None:
        copy.grad = copy_part(value.grad, memo)
    if vars(value):
        copy_attributes(value, copy, memo)
    return copy


def copy_pandas(value: Any, memo: Memo) -> Any:
    copy = value.copy(deep=True)
    if hasattr(value, "index"):  # not an index itself; it may show a NumPy array's memory
        copy.index = value.index.copy(deep=True)
    for name in getattr(value, "_metadata", ()):  # attributes that a subclass has added
        if type(item := getattr(value, name, None)) not in atoms:
            object.__setattr__(copy, name, copy_part(item, memo))
    return copy


def copy_polars(value: Any, memo: Memo) -> Any:
    # `clone` shares memory, which may be that of a NumPy array; to join two parts copies them.
    if not hasattr(value, "rechunk"):  # a LazyFrame
        return value.clone()
    half = len(value) // 2
    parts = [value[:half], value[half:]] if half else [value, value]  # empty ones are left out
    return sys.modules["polars"].concat(parts, rechunk=True)[: len(value)]


def copy_array_array(value: Any, memo: Memo) -> Any:
    if not hasattr(value, "__dict__"):  # not a subclass
        return value[:]
    kind: Any = type(value)
    copy = kind.__new__(kind, value.typecode, value)
    copy_attributes(value, copy, memo)
    return copy


def pass_for_ever(value: Any, memo: Memo) -> Any:
    atoms.add(type(value))
    return value


by_name.update(
    {
        ("array", "array"): copy_array_array,
        ("numpy", "ndarray"): copy_array,
        ("numpy", "MaskedArray"): copy_array,
        ("numpy", "void"): copy_void,
        ("torch", "Tensor"): copy_tensor,
        ("pandas", "DataFrame"): copy_pandas,
        ("pandas", "Series"): copy_pandas,
        ("pandas", "Index"): copy_pandas,
        ("polars", "DataFrame"): copy_polars,
        ("polars", "Series"): copy_polars,
        ("polars", "LazyFrame"): copy_polars,
        ("_io", "BytesIO"): copy_by_reduce,
        ("_io", "StringIO"): copy_by_reduce,
        ("mmap", "mmap"): pass_and_tell,
        ("sqlalchemy", "DeclarativeBase"): pass_and_tell,  # a row, which its session knows
    }
)
# Of which there may be many, and nothing changes.
FOR_EVER = {
    "numpy": "generic dtype",
    "torch": "device dtype layout memory_format",
    "datetime": "date time timedelta tzinfo",
    "zoneinfo": "ZoneInfo",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "pathlib": "PurePath",
    "uuid": "UUID",
    "enum": "Enum",  # also one whose members are dataclass instances
}
# What the program has one of, or what is of no use without what it stands for.
SHARED = {
    "builtins": (
        "code frame traceback generator coroutine async_generator cell property staticmethod "
        "classmethod"
    ),
    "weakref": "ReferenceType ref ProxyType CallableProxyType finalize",
    "_weakref": "ReferenceType",
    "_thread": "lock RLock _local",
    "threading": "Thread Condition Event Semaphore Barrier _RLock",
    "_threading_local": "local",
    "queue": "Queue",
    "_queue": "SimpleQueue",
    "_contextvars": "ContextVar Context Token",
    "contextvars": "ContextVar Context Token",
    "_io": "_IOBase",
    "io": "IOBase",
    "socket": "socket",
    "_socket": "socket",
    "subprocess": "Popen",
    "logging": "Logger Filterer Filter Formatter LoggerAdapter",
    "sqlite3": "Connection Cursor Blob Row",
    "ftplib": "FTP",
    "http": "HTTPConnection HTTPResponse",
    "imaplib": "IMAP4",
    "shelve": "Shelf",
    "smtplib": "SMTP",
    "urllib": "OpenerDirector",
    "zipfile": "ZipFile",
    "tarfile": "TarFile",
    "random": "SystemRandom",
    "secrets": "SystemRandom",
    "functools": "_lru_cache_wrapper",
    "torch": (
        "Module Optimizer LRScheduler _LRScheduler ReduceLROnPlateau GradScaler DataLoader "
        "_BaseDataLoaderIter Stream Event ScriptFunction"
    ),
    "tensorflow": "Module Variable ResourceVariable",
    "keras": "Layer Optimizer Model",
    "h5py": "HLObject ObjectID",
}
PACKAGES = """
_asyncio _multiprocessing _ssl asyncio background concurrent multiprocessing select selectors ssl
tempfile tkinter unittest
aiohttp boto3 botocore comet_ml dask distributed duckdb gevent httpx joblib lightning
lightning_fabric loky matplotlib mlflow mpl_toolkits neptune psycopg psycopg2 pymongo pymysql
pyspark pytorch_lightning ray redis requests rich sqlalchemy tensorboard tensorboardX tqdm urllib3
wandb
"""
by_name.update({(p, n): pass_for_ever for p, names in FOR_EVER.items() for n in names.split()})
by_name.update({(p, n): pass_on for p, names in SHARED.items() for n in names.split()})
shared_packages.update(PACKAGES.split())
