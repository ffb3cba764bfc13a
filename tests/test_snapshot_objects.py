"""C4: `snapshot` copies objects of any class as `copy.deepcopy` does."""

from __future__ import annotations

import array
import collections
import copy
import copyreg
import ctypes
import dataclasses
import functools
import gc
import io
import random
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Log

from background import background, snapshot
from background._snapshot.objects import told


@pytest.fixture(autouse=True)
def nothing_told() -> Iterator[None]:
    told.clear()
    yield
    told.clear()


class Plain:
    def __init__(self, x: Any) -> None:
        self.x = x


class Slots:
    __slots__ = ("unset", "x")

    def __init__(self, x: Any) -> None:
        self.x = x


class Derived(Slots):
    """One with slots of a base and a `__dict__`."""

    def __init__(self, x: Any) -> None:
        super().__init__(x)
        self.y = [x]


class Frozen:
    """One that refuses attributes."""

    def __init__(self, x: Any) -> None:
        self.__dict__["x"] = x

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Stated:
    """One that keeps something out of its state."""

    def __init__(self, x: Any) -> None:
        self.x = x
        self.cache: Any = x

    def __getstate__(self) -> dict[str, Any]:
        return {"x": self.x}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.x = state["x"]
        self.cache = None


class Reduced:
    """One that says how it is made."""

    def __init__(self, x: Any, *, made_by: str = "hand") -> None:
        self.x = x
        self.made_by = made_by

    def __reduce__(self) -> Any:
        return functools.partial(type(self), made_by="reduce"), (self.x,)


class Rows(list[Any]):
    """A list that says how it is made."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.owner = owner

    def __reduce__(self) -> Any:
        return type(self), (self.owner,), None, iter(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Unset:
    """One whose own `__getstate__` fails as long as a field is not set."""

    x: list[int]
    y: list[int] = dataclasses.field(init=False)


class Answering:
    """One that has an answer for every name, before it is filled too."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["x"]


class Structure(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double * 2)]


def rows() -> Rows:
    made = Rows([1])
    made.append([2])
    return made


Make = Callable[[], Any]
# What can be seen to change: how it is made, how it changes, and what is looked at.
CHANGES: dict[str, tuple[Make, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "plain": (lambda: Plain(np.zeros(2)), lambda v: v.x.fill(1), lambda v: v.x.tolist()),
    "attribute": (lambda: Plain(1), lambda v: setattr(v, "x", 2), lambda v: v.x),
    "slots": (lambda: Slots([1]), lambda v: v.x.append(2), lambda v: v.x),
    "derived": (lambda: Derived(1), lambda v: v.y.append(2), lambda v: (v.x, v.y)),
    "frozen": (lambda: Frozen([1]), lambda v: v.x.append(2), lambda v: v.x),
    "answering": (lambda: Answering([1]), lambda v: v.x.append(2), lambda v: v.x),
    "stated": (lambda: Stated([1]), lambda v: v.x.append(2), lambda v: v.x),
    "unset": (lambda: Unset([1]), lambda v: v.x.append(2), lambda v: v.x),
    "reduced": (lambda: Reduced([1]), lambda v: v.x.append(2), lambda v: v.x),
    "rows": (rows, lambda v: v[0].append(2), lambda v: [*v, v.owner]),
    "bound": (lambda: Stated([1]).__getstate__, lambda v: v()["x"].append(2), lambda v: v()["x"]),
    "partial": (lambda: functools.partial(sum, [1]), lambda v: v.args[0].append(2), lambda v: v()),
    "UserDict": (lambda: collections.UserDict(a=1), lambda v: v.clear(), dict),
    "UserList": (lambda: collections.UserList([1]), lambda v: v.clear(), list),
    "ChainMap": (lambda: collections.ChainMap({"a": 1}), lambda v: v.clear(), dict),
    "keys": (lambda: {"a": 1}.keys(), lambda v: owner_of(v).clear(), list),
    "values": (lambda: {"a": 1}.values(), lambda v: owner_of(v).clear(), list),
    "items": (lambda: {"a": [1]}.items(), lambda v: next(iter(v))[1].append(2), list),
    "proxy": (lambda: types.MappingProxyType({"a": [1]}), lambda v: v["a"].append(2), dict),
    "memoryview": (lambda: memoryview(bytearray(b"a")), lambda v: v.__setitem__(0, 1), bytes),
    "matrix view": (
        lambda: memoryview(np.zeros((2, 3))),
        lambda v: v.__setitem__((0, 0), 1.0),
        lambda v: (v.tolist(), v.shape, v.format),
    ),
    "BytesIO": (lambda: io.BytesIO(b"a"), lambda v: v.write(b"b"), lambda v: v.getvalue()),
    "StringIO": (lambda: io.StringIO("a"), lambda v: v.write("b"), lambda v: v.getvalue()),
    "random": (lambda: random.Random(1), lambda v: v.random(), lambda v: v.getstate()),
    "Generator": (
        lambda: np.random.default_rng(1),
        lambda v: v.random(),
        lambda v: repr(v.bit_generator.state),
    ),
    "RandomState": (
        lambda: np.random.RandomState(1),
        lambda v: v.rand(),
        lambda v: str(v.get_state()),
    ),
    "iterator": (lambda: iter([1, 2]), next, lambda v: v.__reduce__()),
    "ctypes": (lambda: Structure(), lambda v: v.x.__setitem__(0, 1), lambda v: list(v.x)),
    "exception": (lambda: KeyError([1]), lambda v: v.args[0].append(2), lambda v: v.args),
    "array": (lambda: array.array("d", [1]), lambda v: v.append(2), list),
    "masked": (
        lambda: np.ma.MaskedArray([1, 2], mask=[0, 1], fill_value=7),
        lambda v: v._fill_value.fill(8),
        lambda v: (v.tolist(), v.fill_value),
    ),
}


def owner_of(view: Any) -> Any:
    """Return the dict that a view shows."""
    return gc.get_referents(view)[0]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_not_seen(name: str, log: Log) -> None:
    """C4: a copy shows what the value was, alone and inside of others, and nothing is logged."""
    make, change, look = CHANGES[name]
    value = make()
    before = look(make())
    one, (other,), third = snapshot([value, (value,), Plain(value)])
    assert type(one) is type(value)
    assert one is other is third.x
    change(value)
    assert look(one) == before
    assert not log.warnings


def test_hooks_are_what_they_are_to_copy() -> None:
    """C4: `__getstate__`, `__setstate__`, `__reduce__` and `copyreg` are honoured."""
    assert snapshot(Stated([1])).cache is None
    assert snapshot(Reduced([1])).made_by == "reduce"

    class Registered:
        x = "unset"

    def reduce(value: Registered) -> Any:
        return make, ([1],)

    def make(x: Any) -> Registered:
        made = Registered()
        made.x = x
        return made

    copyreg.pickle(Registered, reduce)  # type: ignore[arg-type]
    try:
        assert snapshot(Registered()).x == [1]
    finally:
        del copyreg.dispatch_table[Registered]


class Handle:
    """The program's one handle."""

    def __deepcopy__(self, memo: object) -> Handle:
        return self


class Tree:
    """One that copies itself by `copy.deepcopy`."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        self.handle = Handle()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tree:
        made = memo[id(self)] = Tree(None)
        made.parts = copy.deepcopy(self.parts, memo)
        made.handle = self.handle
        return made


class Ring(list[Any]):
    """A list that copies itself."""

    def __deepcopy__(self, memo: object) -> Ring:
        return Ring(self)


def test_deepcopy_is_honoured() -> None:
    """C4: a class's own `__deepcopy__` decides, with a memo that fits, whatever the class is."""
    handle, part = Handle(), [1]
    assert snapshot(handle) is handle
    assert snapshot([handle])[0] is handle
    tree = Tree([part, None])
    tree.parts[1] = tree
    for value in ([part, tree, tree], [tree, part, tree]):
        made = snapshot(value)
        trees = [each for each in made if isinstance(each, Tree)]
        (copied,) = (each for each in made if isinstance(each, list))
        assert trees[0] is trees[1] is trees[0].parts[1]
        assert trees[0] is not tree
        assert trees[0].handle is tree.handle
        assert trees[0].parts[0] is copied
        assert copied is not part
    ring = Ring([part])
    assert snapshot(ring)[0] is part


def test_locks_are_shared_by_the_copy(log: Log) -> None:
    """C4: what can't be copied and is known is shared, the object around it is copied."""
    value = Plain([1])
    value.lock, value.stop = threading.Lock(), threading.Event()  # type: ignore[attr-defined]
    made: Any = snapshot(value)
    assert made.x is not value.x
    assert made.lock is value.lock  # type: ignore[attr-defined]
    assert made.stop is value.stop  # type: ignore[attr-defined]
    assert not log.warnings


class Locked:
    """One that pickle refuses."""

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("not today")


class FailingCopy:
    def __deepcopy__(self, memo: object) -> None:
        raise ValueError("not today")


class FailingState(Stated):
    def __setstate__(self, state: Any) -> None:
        raise ValueError("not today")


class Needing:
    def __new__(cls, need: object) -> Needing:
        return super().__new__(cls)

    def __init__(self, need: object) -> None:
        self.need = need


class Owner:
    """One that takes something with it."""

    def __init__(self, gone: list[str]) -> None:
        self.gone = gone

    def __del__(self) -> None:
        self.gone.append("gone")


class OwnerList(list[Any]):
    gone: list[str] = []  # noqa: RUF012

    def __del__(self) -> None:
        self.gone.append("gone")


class Single:
    made: Any = None

    def __new__(cls) -> Single:
        cls.made = cls.made or super().__new__(cls)
        return cls.made  # type: ignore[no-any-return]


def single() -> Single:
    made = Single()
    made.x = [1]  # type: ignore[attr-defined]
    return made


REFUSED: dict[str, Make] = {
    "Locked": Locked,
    "FailingCopy": FailingCopy,
    "FailingState": lambda: FailingState(1),
    "Needing": lambda: Needing(1),
    "Owner": lambda: Owner([]),
    "OwnerList": OwnerList,
    "Single": single,
    "flatiter": lambda: np.zeros(2).flat,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_copied_is_named_once(name: str, log: Log) -> None:
    """C4: what can't be copied, or owns something, is passed as it is, and its type named once."""
    value = REFUSED[name]()
    state = dict(getattr(value, "__dict__", {}))
    for _ in range(2):
        made = snapshot([value, Plain(value)])
        assert made[0] is made[1].x is value
    (line,) = log.warnings
    assert name in line
    assert "snapshot.register" in line
    assert all(vars(value)[key] is item for key, item in state.items())  # nothing has touched it
    gone = getattr(value, "gone", None)
    assert not gone


def test_a_call_gets_a_copy_of_an_object(log: Log) -> None:
    """C4: a call sees the attributes that an object had when the call was made."""
    value = Plain({"loss": [1.0]})
    gate = threading.Event()

    @background(snapshot=True)
    def plot(value: Plain) -> Any:
        gate.wait(10)
        return value.x

    future = plot(value)
    value.x["loss"].append(2.0)
    value.x = None
    gate.set()
    assert future.result(10) == {"loss": [1.0]}


class Key:
    """One whose hash is that of a part."""

    def __init__(self, name: Any, to: Any) -> None:
        self.name = name
        self.to = to

    def __hash__(self) -> int:
        return hash(self.name.x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.name.x == other.name.x


def chain(kind: Any, length: int, end: Any) -> Any:
    for _ in range(length):
        end = kind(end)
    return end


@pytest.mark.parametrize("kind", [Plain, Slots, Stated])
@pytest.mark.parametrize("length", [39, 40, 41, 100, 100_000])
def test_long_chains(length: int, kind: Any) -> None:
    """C4: a linked list is copied whatever its length, also where sets want hashes at its end."""
    value = chain(kind, length, {Key(Plain("a"), 1), Key(Plain("b"), 2)})
    made = snapshot(value)
    for _ in range(length):
        assert made is not value
        made, value = made.x, value.x
    assert made == value
    assert not {id(key) for key in made} & {id(key) for key in value}


def test_rings_of_objects() -> None:
    """C4: a doubly linked list stays one."""
    first = last = Plain(None)
    for _ in range(1000):
        new = Plain(last)
        last.next = new  # type: ignore[attr-defined]
        last = new
    made: Any = snapshot(first)
    for _ in range(1000):
        assert made.next.x is made
        made = made.next


def test_exceptions_still_tell_where_they_were_raised() -> None:
    """C4: the copy of an exception keeps traceback, cause and notes."""
    with pytest.raises(ValueError, match="1") as caught:
        raise ValueError([1]) from KeyError("a")
    error = caught.value
    error.add_note("a note")
    made = snapshot(error)
    assert made is not error
    assert made.args[0] is not error.args[0]
    assert made.__traceback__ is error.__traceback__
    assert made.__cause__ is error.__cause__
    assert made.__suppress_context__
    assert made.__notes__ == ["a note"]


def test_numpy_strings() -> None:
    """C4: arrays of variable strings are copied."""
    kind = getattr(np.dtypes, "StringDType", None)
    if kind is None:
        pytest.skip("NumPy 2 has them")
    value = np.array(["a", "b"], kind())
    made = snapshot(value)
    value[0] = "changed"
    assert made.tolist() == ["a", "b"]


def test_numpy_attributes() -> None:
    """C4: the attributes of an array's own class are copied with it."""

    class Signal(np.ndarray):
        def __array_finalize__(self, obj: Any) -> None:
            self.info = getattr(obj, "info", None)

    value = np.zeros(2).view(Signal)
    value.info, value.more = {"rate": 1}, [1]  # type: ignore[attr-defined]
    made: Any = snapshot(value)
    value.info["rate"] = 2  # type: ignore[index]
    value.more.append(2)  # type: ignore[attr-defined]
    assert made.info == {"rate": 1}
    assert made.more == [1]


def test_torch_gradients() -> None:
    """C4: a tensor's gradient and attributes are copied with it; modules are shared."""
    torch = pytest.importorskip("torch")
    weight = torch.ones(2, requires_grad=True)
    (weight * 2).sum().backward()
    weight.tags = ["a"]
    made, grad = snapshot([weight, weight.grad])
    weight.grad.zero_()
    weight.tags.append("b")
    assert made.grad.tolist() == [2, 2]
    assert made.grad is grad
    assert made.tags == ["a"]
    inner = weight * 2  # not a leaf: to ask for its gradient would warn
    inner.retain_grad()
    inner.sum().backward()
    assert snapshot(inner).tolist() == [2, 2]
    assert snapshot(inner).grad.tolist() == [1, 1]
    lazy = torch.nn.parameter.UninitializedParameter()
    assert type(snapshot(lazy)) is type(lazy)
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    made = snapshot(Plain([layer, optimizer, [1]]))
    assert made.x[0] is layer
    assert made.x[1] is optimizer


def test_pandas_attributes() -> None:
    """C4: what a subclass of a frame adds is copied with it."""
    pandas = pytest.importorskip("pandas")

    class Frame(pandas.DataFrame):  # type: ignore[misc, name-defined]
        _metadata = ["info"]  # noqa: RUF012

        @property
        def _constructor(self) -> Any:
            return Frame

    frame = Frame({"a": [1]})
    frame.info = {"unit": ["m"]}
    frame.attrs["source"] = ["file"]
    made = snapshot(frame)
    frame.info["unit"].append("s")
    frame.attrs["source"].append("net")
    assert type(made) is Frame
    assert made.info == {"unit": ["m"]}
    assert made.attrs == {"source": ["file"]}


def attrs_objects() -> list[Any]:
    attrs = pytest.importorskip("attrs")
    kinds = [attrs.make_class("A", ["x"]), attrs.make_class("B", ["x"], frozen=True, slots=True)]
    return [kind([1]) for kind in kinds]


def pydantic_objects() -> list[Any]:
    pydantic = pytest.importorskip("pydantic")
    return [pydantic.create_model("Model", x=(list[int], ...))(x=[1])]


@pytest.mark.parametrize("make", [attrs_objects, pydantic_objects])
def test_classes_of_attrs_and_pydantic(make: Any, log: Log) -> None:
    """C4: objects of attrs and pydantic are copied, whether they have slots, or are frozen."""
    for value in make():
        made = snapshot(value)
        value.x.append(2)
        assert type(made) is type(value)
        assert made.x == [1]
    assert not log.warnings


def of_xarray() -> tuple[Any, Any, Any]:
    xarray = pytest.importorskip("xarray")
    value = xarray.DataArray(np.zeros(2))
    return value, value.values, lambda made: made.values


def of_scipy() -> tuple[Any, Any, Any]:
    sparse = pytest.importorskip("scipy.sparse")
    value = sparse.csr_array(np.eye(2))
    return value, value.data, lambda made: made.data - 1


def of_pyarrow() -> tuple[Any, Any, Any]:
    pyarrow = pytest.importorskip("pyarrow")
    data = np.zeros(2)
    return (
        pyarrow.Array.from_buffers(pyarrow.float64(), 2, [None, pyarrow.py_buffer(data)]),
        data,
        np.asarray,
    )


def of_pandas() -> tuple[Any, Any, Any]:
    pandas = pytest.importorskip("pandas")
    data = np.zeros(2, np.int8)
    value = pandas.Categorical.from_codes(data, ["a", "b"])
    return value, value._codes if value._codes.flags.writeable else data, lambda made: made.codes


@pytest.mark.parametrize("make", [of_xarray, of_scipy, of_pyarrow, of_pandas])
def test_memory_of_other_libraries(make: Any, log: Log) -> None:
    """C4: what other libraries keep in arrays is copied."""
    value, data, look = make()
    made = snapshot(value)
    assert type(made) is type(value)
    data[:] = 1
    assert look(made).tolist() == [0] * len(look(made))
    assert not log.warnings


def test_pictures() -> None:
    """C4: an image is copied with its pixels."""
    image = pytest.importorskip("PIL.Image").new("L", (2, 2))
    made = snapshot(image)
    image.putpixel((0, 0), 255)
    assert made.getpixel((0, 0)) == 0


class Attributes(dict[str, Any]):
    """A dict whose items are its attributes, as many write it."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


def test_a_dict_that_is_its_own_attributes() -> None:
    """C4: of such a dict the copy is one, too."""
    value = Attributes(a=[1], inner=Attributes(b=[1]))
    made: Any = snapshot(value)
    value["a"].append(2)
    value["inner"]["b"].append(2)
    made.new = 1
    assert made == {"a": [1], "inner": {"b": [1]}, "new": 1}
    assert made.inner.b == [1]
    assert made["inner"] is made.inner
