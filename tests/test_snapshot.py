"""C4: with `snapshot=True` a call works on the values as they are now."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import enum
import functools
import gc
import io
import logging
import queue
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pytest
from conftest import Held
from hypothesis import given
from hypothesis import strategies as st

from background import background, flush, snapshot

SimpleNamespace = type(sys.implementation)


@dataclasses.dataclass
class Plain:
    x: Any
    made: Any = dataclasses.field(init=False, default_factory=list)


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any


@dataclasses.dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class FrozenSlotted:
    x: Any


@dataclasses.dataclass
class Checked:
    """One whose `__init__` and attributes do things, which a copy must not."""

    x: Any
    again: dataclasses.InitVar[int]

    def __post_init__(self, again: int) -> None:
        raise AssertionError

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError


class Stack(list[Any]):
    """A list of somebody who gave it more, and another `__init__`."""

    def __init__(self, name: str, *items: Any) -> None:
        super().__init__(items)
        self.name = [name]

    def extend(self, items: object) -> None:
        raise AssertionError

    __iter__ = None  # type: ignore[assignment]


class Config(dict[str, Any]):
    """A dict whose items are attributes."""

    __slots__ = ("path",)

    def __init__(self, path: Any, /) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return dict.__getitem__(self, name)
        raise AttributeError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(dict.keys(self)))

    def __getitem__(self, key: str) -> None:
        raise AssertionError

    def __setitem__(self, key: str, value: object) -> None:
        raise AssertionError


class Tail(deque[Any]):
    def __init__(self, *, size: int) -> None:
        super().__init__(maxlen=size)


class Group(set[Any]):
    def __init__(self, *, name: str) -> None:
        self.name = [name]


class Raw(bytearray):
    def __init__(self, *, size: int) -> None:
        super().__init__(size)


class Samples(array):  # type: ignore[type-arg]
    note: list[str]


class Ordered(OrderedDict[str, Any]):
    def __init__(self, *, name: str) -> None:
        super().__init__()
        self.name = [name]


Point = namedtuple("Point", "x y")


class Marked(Point):
    """A named tuple with room for more."""


def config() -> Config:
    made = Config([1])
    dict.__setitem__(made, "w", [2])
    return made


def tail() -> Tail:
    made = Tail(size=2)
    made.extend([[1], [2], [3]])
    return made


def group() -> Group:
    made = Group(name="g")
    made.add(1)
    return made


def samples() -> Samples:
    made = Samples("d", [1.0])
    made.note = ["a"]
    return made


def ordered() -> Ordered:
    made = Ordered(name="o")
    made.update(a=[1], b=[2])
    made.move_to_end("a")
    return made


def marked() -> Marked:
    made = Marked(1, 2)
    made.note = ["a"]  # type: ignore[attr-defined]
    return made


def checked() -> Checked:
    made = Checked.__new__(Checked)
    vars(made)["x"] = [1]
    return made


MUTABLE: dict[str, Callable[[], Any]] = {
    "list": lambda: [1, [2]],
    "dict": lambda: {"a": [1], 2: {}},
    "keys": lambda: {Frozen((1, FrozenSlotted)): [1]},
    "set": lambda: {1, (2, 3)},
    "deque": lambda: deque([1, [2], 3], maxlen=3),
    "bytearray": lambda: bytearray(b"abc"),
    "array": lambda: array("d", [1.0, 2.0]),
    "dataclass": lambda: Plain([1]),
    "slots": lambda: Slotted([1]),
    "frozen": lambda: Frozen([1]),
    "strict": checked,
    "namespace": lambda: SimpleNamespace(a=[1], b=SimpleNamespace()),
    "OrderedDict": lambda: OrderedDict(a=[1], b=2),
    "defaultdict": lambda: defaultdict(list, a=[1]),
    "Counter": lambda: Counter("abca"),
    "tuple": lambda: (1, [2]),
    "named tuple": lambda: Point(1, [2]),
    "named tuple with more": marked,
    "list subclass": lambda: Stack("a", [1], 2),
    "dict subclass": config,
    "deque subclass": tail,
    "set subclass": group,
    "bytearray subclass": lambda: Raw(size=3),
    "array subclass": samples,
    "OrderedDict subclass": ordered,
}


def all_of(value: Any) -> Iterator[Any]:
    """Yield a value and all that it holds, each once."""
    seen: dict[int, Any] = {}
    left = [value]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, np.ndarray):
            left += [value.base] * (value.base is not None)
            left += value.ravel().tolist() if value.dtype == object else []
        else:
            left += gc.get_referents(value)


def is_mutable(value: Any) -> bool:
    kinds = (list, dict, set, deque, bytearray, array, SimpleNamespace, np.ndarray, np.void)
    return isinstance(value, kinds) or (dataclasses.is_dataclass(value) and type(value) is not type)


def shared(one: Any, other: Any) -> list[Any]:
    """Return the mutable parts that two values share."""
    mine = {id(part) for part in all_of(one) if is_mutable(part)}
    return [part for part in all_of(other) if id(part) in mine]


def shape(value: Any) -> Any:
    """Return what a value looks like, its sharing and cycles included, so that it can be compared.

    `copy.deepcopy` and `==` follow cycles for ever or forget what is shared.
    """
    numbers: dict[int, int] = {}
    kept: list[Any] = []

    def look(value: Any) -> Any:
        if isinstance(value, str | bytes | int | float | complex | type | None):
            return type(value).__name__, repr(value)
        if id(value) in numbers:
            return "seen", numbers[id(value)]
        if type(value) not in (tuple, frozenset):  # whether those are shared nobody can tell
            numbers[id(value)] = len(numbers)
        kept.append(value)
        state: Any = object.__getstate__(value)
        about: list[Any] = [type(value)]
        if isinstance(value, dict):
            about += [[look(key), look(dict.__getitem__(value, key))] for key in list(value)]
            about.append(value.default_factory if isinstance(value, defaultdict) else None)
        elif isinstance(value, np.ndarray):
            about += [value.dtype.str, value.shape, [look(item) for item in value.ravel().tolist()]]
        elif isinstance(value, set | frozenset):
            about.append(sorted(map(repr, value)))
        elif isinstance(value, list):
            about += [look(list.__getitem__(value, i)) for i in range(len(value))]
        elif isinstance(value, tuple | deque | bytearray | array):
            about += [look(item) for item in value]
            about.append(getattr(value, "maxlen", None))
        if not isinstance(value, np.ndarray):
            about.append(look_at_state(state))
        return about

    def look_at_state(state: Any) -> Any:
        states = state if type(state) is tuple else (state,)
        return [[(k, look(v)) for k, v in (state or {}).items()] for state in states]

    return look(value)


@pytest.mark.parametrize("name", MUTABLE)
def test_what_is_copied(name: str) -> None:
    """C4: a copy is of the same type, looks the same, and shares nothing that can change."""
    value = MUTABLE[name]()
    made = snapshot(value)
    assert type(made) is type(value)
    assert shape(made) == shape(value)
    assert not shared(made, value)


class Color(enum.Enum):
    RED = [1]  # noqa: RUF012  # a value that can change, on purpose


@dataclasses.dataclass
class Mixin:
    x: list[int]


class Member(Mixin, enum.Enum):
    ONE = [1]  # noqa: RUF012


class Unknown:
    """One that says that there is no other."""

    def __reduce__(self) -> str:
        return "the_only_one"


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "a",
        (1, ("a", b"b")),
        frozenset([1, (2,)]),
        Point(1, 2),
        len,
        test_what_is_copied,
        lambda: 0,
        np,
        Plain,
        Color.RED,
        Member.ONE,
        threading.Lock(),
        logging.getLogger(),
        threading.Event(),
        queue.Queue(),
        io.TextIOWrapper(io.BytesIO()),
        contextvars.ContextVar("v"),
        sqlite3.connect(":memory:"),
        futures.ThreadPoolExecutor(1),
        futures.Future(),
        functools.lru_cache(len),
        (i for i in [1]),
        tempfile.TemporaryDirectory(),
        vars(Plain),
        Unknown(),
        time.gmtime(0),
        np.float64(1.5),
        np.dtype("f8"),
        weakref.ref(Unknown),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_passed_on(value: Any) -> None:
    """C4: what can't change and what isn't known is passed as it is, also inside of copies."""
    assert snapshot(value) is value
    assert snapshot([value])[0] is value
    assert snapshot({"a": (value,)})["a"][0] is value


def test_figures_and_files_are_passed_on() -> None:
    """C4: open files and figures are passed as they are."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    assert snapshot([figure, axes, sys.stderr]) == [figure, axes, sys.stderr]


# -- Properties ----------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
keys = st.integers() | st.text() | st.tuples(st.integers())
arrays = st.lists(st.floats(allow_nan=False), max_size=4).map(np.array)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=4)
    objects = st.lists(st.lists(inner, max_size=2), min_size=1, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        lists.map(deque),
        lists.map(lambda items: Stack("a", *items)),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=4).map(lambda items: defaultdict(list, items)),
        st.sets(keys),
        st.frozensets(keys),
        st.builds(Plain, inner),
        st.builds(Slotted, inner),
        st.builds(Frozen, inner),
        st.builds(FrozenSlotted, inner),
        st.builds(Point, inner, inner),
        st.builds(lambda a, b: SimpleNamespace(a=a, b=b), inner, inner),
        inner.map(lambda item: [item, item, (item,)]),
        objects.map(lambda items: np.fromiter(items, dtype=object)),
    )


values = st.recursive(scalars | arrays | st.binary().map(bytearray), containers, max_leaves=12)


def spoil(value: Any) -> None:
    """Change everything that can be changed."""
    for part in list(all_of(value)):
        if isinstance(part, np.ndarray):
            part[...] = 0
        elif isinstance(part, list):
            list.append(part, "spoiled")
        elif isinstance(part, dict):
            part.clear()
        elif isinstance(part, deque | array | bytearray | set):
            part.clear() if not isinstance(part, array) else part.append(0)
        elif isinstance(part, SimpleNamespace):
            vars(part)["a"] = "spoiled"
        elif dataclasses.is_dataclass(part):
            object.__setattr__(part, "x", "spoiled")


@given(values)
def test_a_copy_is_what_the_value_was(value: Any) -> None:
    """C4: a copy has the value's looks and sharing, nothing of it, and sees no later change."""
    before = shape(value)
    made = snapshot(value)
    assert shape(made) == before
    assert not shared(made, value)
    spoil(value)
    assert shape(made) == before


@given(values, st.data())
def test_cycles_stay_cycles(value: Any, data: st.DataObject) -> None:
    """C4: what leads back to itself does so in the copy, wherever the way leads through."""
    lists = [part for part in all_of(value) if type(part) in (list, deque, dict)]
    root = [value]
    for part in [root, *lists]:
        to = data.draw(st.sampled_from([root, (root,), *lists]))
        part.append(to) if not isinstance(part, dict) else part.update(back=to)
    before = shape(root)
    made = snapshot(root)
    assert shape(made) == before
    assert not shared(made, root)
    spoil(root)
    assert shape(made) == before


def test_cycles_through_what_can_not_be_filled_later() -> None:
    """C4: a tuple on a cycle is one object in the copy, too."""
    inner: list[Any] = []
    value = (inner, 1)
    inner.append(value)
    made = snapshot(value)
    assert made[0][0] is made
    assert made[0] is not inner


# -- Calls ---------------------------------------------------------------------------------


def test_a_call_works_on_the_values_as_they_were(held: Held) -> None:
    """C4: what changes between the call and its start isn't seen, in arguments of both kinds."""
    weights = np.zeros(3)
    history = {"loss": [1.0]}
    call = background(lambda *args, **kwargs: (args, kwargs), executor=held.executor, snapshot=True)
    future = call(weights, history, also=[weights])
    weights[:] = 1
    history["loss"].append(2.0)
    held.gate.set()
    (seen, past), named = future.result()
    assert seen.tolist() == [0, 0, 0]
    assert past == {"loss": [1.0]}
    assert named["also"][0] is seen  # one copy for the call, not one for each argument


def test_without_snapshot_arguments_are_passed(executor_in_memory: Executor) -> None:
    """C4: a call without `snapshot` gets the very arguments."""
    value = [1]
    call = background(lambda x, *, y: x is value and y is value, executor=executor_in_memory)
    assert call(value, y=value).result()
    copied = background(
        lambda x, *, y: x is y and x is not value, executor=executor_in_memory, snapshot=True
    )
    assert copied(value, y=value).result()


class Model:
    def __init__(self) -> None:
        self.weights = [0]

    @background(snapshot=True)
    def plot(self, x: list[int]) -> tuple[Model, list[int]]:
        return self, x

    @classmethod
    @background(snapshot=True)
    def inner(cls, x: list[int]) -> tuple[type, list[int]]:
        return cls, x

    @background(snapshot=True)
    @staticmethod
    def static(x: list[int]) -> list[int]:
        return x


def test_methods() -> None:
    """C4: a method's arguments are copied, its instance or class is passed as it is."""
    model, value = Model(), [1]
    owner, seen = model.plot(value).result()
    assert owner is model
    assert seen == value
    assert seen is not value
    kind, seen = Model.inner(value).result()
    assert kind is Model
    assert seen is not value
    assert model.static(value).result() is not value


def test_an_executor_that_packs_makes_no_second_copy(held: Held) -> None:
    """C4: an executor that pickles gets the arguments themselves."""
    value = [1]
    held.executor._packs = True
    future = background(lambda x: x, executor=held.executor, snapshot=True)(value)
    held.gate.set()
    assert future.result() is value


class CannotError(ValueError):
    """An error that can be seen to die."""


class Broken:
    """Something that can't be copied."""


@snapshot.register(Broken)
def copy_broken(value: Broken, memo: dict[int, object]) -> Broken:
    raise CannotError("it is broken")


def test_a_failed_copy_fails_the_call_alone(executor_in_memory: Executor) -> None:
    """C4: who makes the call goes on; its future tells which argument could not be copied."""
    ran: list[object] = []

    def plot(*args: object, **kwargs: object) -> None:
        ran.append(args)

    call = background(executor=executor_in_memory, snapshot=True)(plot)
    for future, where in [
        (call(1, {"a": Broken()}), "args[1]"),
        (call(1, by_name=Broken()), "kwargs['by_name']"),
    ]:
        error = future.exception()
        assert isinstance(error, ValueError)
        copying, place = error.__notes__
        assert where in copying
        assert "in copy_broken" in copying
        assert place.startswith("plot(…), called at test_snapshot.py:")
    assert not ran


def test_a_failed_copy_that_nobody_looks_at_is_logged(log: Any) -> None:
    """C4, E1: a failed copy reaches its user as every failure does."""
    background(len, snapshot=True)(Broken())  # type: ignore[arg-type]
    flush()
    assert len(log.errors) == 1
    assert "len(…), called at test_snapshot.py" in log.errors[0]


def test_too_deep_a_value_fails_its_call() -> None:
    """C4: what is nested too deeply to be copied takes nothing else with it."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert isinstance(background(len, snapshot=True)(deep).exception(), RecursionError)
    while deep:
        deep = deep.pop()


def test_nothing_is_kept(executor_in_memory: Executor) -> None:
    """C6: neither the values, nor the copies, nor those of a failed copy outlive the call."""
    gc.collect()
    gc.disable()
    try:
        value, bad = Plain([1]), Plain([1, Broken()])
        alive = [weakref.ref(value), weakref.ref(bad)]
        future = background(lambda x: weakref.ref(x), executor=executor_in_memory, snapshot=True)(
            value
        )
        logging.getLogger("background").setLevel(logging.CRITICAL + 1)
        failed = background(len, executor=executor_in_memory, snapshot=True)  # type: ignore[arg-type]
        alive.append(weakref.ref(failed(bad).exception()))
        failed(bad)
        del value, bad
        flush()
        logging.getLogger("background").setLevel(logging.NOTSET)
        assert [ref() for ref in [*alive, future.result()]] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", [1, None, "yes", len])
def test_wrong_options(wrong: Any) -> None:
    """D3: what is neither True nor False is a TypeError at the decoration."""
    with pytest.raises(TypeError, match="snapshot must be True or False"):
        background(snapshot=wrong)


# -- Registering ---------------------------------------------------------------------------


class Node:
    def __init__(self, children: list[Node]) -> None:
        self.children = children
        self.parent: Node | None = None
        for child in children:
            child.parent = self


class Special(Node):
    """One that inherits how it is copied."""


@snapshot.register(Node)
def copy_node(node: Node, memo: dict[int, object]) -> Node:
    made = memo[id(node)] = type(node)([])
    made.children = snapshot(node.children, memo)
    made.parent = snapshot(node.parent, memo)
    return made


def test_a_registered_type_has_shared_parts_and_cycles() -> None:
    """C4: a type is added by single dispatch, parts of it are shared and lead back as before."""
    leaf = Special([])
    tree = Node([leaf, Node([])])
    made, also = snapshot((tree, [leaf]))
    assert made is not tree
    assert type(made.children[0]) is Special
    assert made.children[0] is also[0] is not leaf
    assert made.children[0].parent is made


class Curve:
    def __init__(self, points: list[int]) -> None:
        self.points = points


def test_deepcopy_is_such_a_function() -> None:
    """C4: `copy.deepcopy` can be registered; it works on the same memo."""
    points = [1]
    curve = Curve(points)
    snapshot.register(Curve, copy.deepcopy)
    for value in ([points, curve, curve], [curve, points, curve]):
        made = snapshot(value)
        (one, other), (part,) = (
            [part for part in made if isinstance(part, Curve)],
            [part for part in made if isinstance(part, list)],
        )
        assert one is other
        assert one is not curve
        assert one.points is part
        assert part is not points


def test_parts_that_live_for_the_copy_alone() -> None:
    """C4: a part made by a registered function is not taken for a later one at its address."""

    class Made:
        pass

    @snapshot.register(Made)
    def copy_made(value: Made, memo: dict[int, object]) -> Any:
        return [snapshot([i], memo) for i in range(100)]

    assert snapshot(Made()) == [[i] for i in range(100)]


def test_what_is_built_in_can_be_registered() -> None:
    """C4: a function for a type that is known already goes before ours, also after its use."""
    script = """if True:
        from background import snapshot
        import array, numpy, fractions, enum
        class Array(numpy.ndarray): pass
        half, a = fractions.Fraction(1, 2), numpy.ones(2).view(Array)
        snapshot([half, half, a, 1])
        snapshot.register(fractions.Fraction, lambda value, memo: "half")
        snapshot.register(numpy.ndarray, lambda value, memo: "array")
        snapshot.register(int, lambda value, memo: "one")
        snapshot.register(list, lambda value, memo: tuple(snapshot(v, memo) for v in value))
        print(snapshot([half, a, 1, 1.5]))
    """
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, text=True)
    assert out.stdout == "('half', 'array', 'one', 1.5)\n", out.stderr


@pytest.mark.parametrize(("kind", "function"), [(7, len), (Broken(), len), (int, 7)])
def test_wrong_registrations(kind: Any, function: Any) -> None:
    """D3: what is no type or no function is a TypeError that says so."""
    with pytest.raises(TypeError, match=r"snapshot.register needs a"):
        snapshot.register(kind, function)


# -- Libraries -----------------------------------------------------------------------------


def test_no_library_is_imported() -> None:
    """C4: a library's types are recognised, and we load none of them."""
    script = """if True:
        import sys
        import background
        before = set(sys.modules)
        class Own: pass
        background.background(len, snapshot=True)([Own(), {1}, print, bytearray(3)]).result()
        assert not {"numpy", "torch", "pandas", "polars"} & before
        assert set(sys.modules) == before, set(sys.modules) - before
    """
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, text=True)
    assert not out.returncode, out.stderr


def test_numpy_views_become_independent() -> None:
    """C4: of a view what it shows is copied, not its base; two views become two arrays."""
    base = np.arange(1_000_000.0)
    one, other = snapshot([base[::1000], base[:2]])
    assert one.base is None
    assert one.nbytes == 8000
    base[:] = 7
    assert one[:2].tolist() == [0, 1000]
    one[0] = 5
    assert other.tolist() == [0, 1]
    same, again = snapshot((base, base))
    assert same is again


@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_keeps_the_order_in_memory(order: Any) -> None:
    """C4: the copy lies in memory as the array does."""
    array = np.ones((3, 4, 5), order=order)
    assert snapshot(array).flags.f_contiguous == (order == "F")
    assert snapshot(array.transpose(1, 0, 2)).strides == array.transpose(1, 0, 2).copy("K").strides


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_numpy_object_arrays(shape: tuple[int, ...]) -> None:
    """C4: the objects in an array are copied each, whatever they are, and may lead back."""
    array = np.empty(shape, object)
    for index in np.ndindex(shape):
        array[index] = None
    array.fill([1])
    array = array.T
    made = snapshot(array)
    assert made.shape == array.shape
    assert shape == () or made.flags.f_contiguous
    items, copies = array.ravel("K").tolist(), made.ravel("K").tolist()
    assert copies == items
    assert not shared(copies, items)
    assert len({id(item) for item in copies}) == len({id(item) for item in items})


def test_numpy_object_arrays_hold_anything() -> None:
    """C4: arrays, tuples and the array itself, inside of an array, stay what they are."""
    array = np.empty(4, object)
    array[:3] = [(1, [2]), {"a": [1]}, None]
    array[3] = array
    inner = np.empty(1, object)
    inner[0] = np.arange(3)
    array[2] = inner
    made = snapshot(array)
    assert made[3] is made
    assert made[0] == (1, [2])
    assert made[0][1] is not array[0][1]
    assert made[2][0] is not inner[0]
    assert made[2][0].tolist() == [0, 1, 2]


def test_numpy_masked_and_structured_arrays() -> None:
    """C4: masks, rows and records are copied as what they are."""
    masked = np.ma.MaskedArray([1, 2, 3], mask=[0, 1, 0])
    made = snapshot(masked)
    masked.mask[0] = True
    masked.data[2] = 9
    assert made.tolist() == [1, None, 3]
    rows = np.array([(1, [2], (3, 4))], dtype=[("a", int), ("b", object), ("c", int, 2)])
    copied, row = snapshot([rows, rows[0]])
    rows["a"] = 9
    rows["b"][0].append(9)
    for one in (copied[0], row):
        assert (one["a"], one["b"], one["c"].tolist()) == (1, [2], [3, 4])
    record = np.rec.array([(1, 2.0)], names="a,b")
    assert type(snapshot(record)) is np.recarray
    assert type(snapshot(record[0])) is np.record


class Units(np.ndarray):
    """A subclass of somebody."""


def test_numpy_subclasses_and_scalars() -> None:
    """C4: subclasses stay what they are; dates, strings and scalars are no special case."""
    assert type(snapshot(np.ones(2).view(Units))) is Units
    for value in (np.array(["a"]), np.array(["2020"], "M8[s]"), np.array(1.5), np.array(b"a")):
        made = snapshot(value)
        assert made is not value
        assert made == value
    losses = [np.float32(1.5)] * 3
    assert snapshot(losses) == losses


def test_torch() -> None:
    """C4: tensors are detached copies on their device, parameters plain tensors."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, 2)
    weight, state, most = snapshot([layer.weight, layer.state_dict(), torch.ones(2, 2).max(0)])
    before = layer.weight.tolist()
    with torch.no_grad():
        layer.weight.zero_()
    assert weight.tolist() == state["weight"].tolist() == before
    assert type(weight) is torch.Tensor
    assert not weight.requires_grad
    assert weight.device == layer.weight.device
    assert type(state) is OrderedDict
    assert most.values.tolist() == [1, 1]
    assert type(most) is type(torch.ones(2, 2).max(0))
    tensor = torch.arange(6.0)
    view, whole, again = snapshot((tensor[::2], tensor, tensor))
    tensor.zero_()
    assert view.tolist() == [0, 2, 4]
    assert view.untyped_storage().nbytes() == 12
    assert whole is again
    assert snapshot(layer) is layer
    assert snapshot(torch.eye(2).to_sparse()).to_dense().tolist() == [[1, 0], [0, 1]]
    assert snapshot([torch.bfloat16, torch.Size([1])]) == [torch.bfloat16, torch.Size([1])]


def test_pandas() -> None:
    """C4: frames, series and their indexes see no change of the array under them."""
    pandas = pytest.importorskip("pandas")
    data, axis = np.arange(3.0), np.arange(3.0)
    index = pandas.Index(axis, copy=False, name="at")
    frame = pandas.DataFrame(data[:, None], index=index, columns=["x"], copy=False)
    series = pandas.Series(data, index=index, copy=False, name="s")
    one, other, last = snapshot([frame, series, index])
    before = [one.copy(), other.copy(), last.copy()]
    data[:] = axis[:] = 9
    frame.loc[9, "x"] = 7
    assert one.equals(before[0])
    assert one["x"].tolist() == other.tolist() == last.tolist() == one.index.tolist() == [0, 1, 2]
    assert other.index.tolist() == [0, 1, 2]
    assert (other.name, last.name, one.index.name) == ("s", "at", "at")


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_polars(size: int) -> None:
    """C4: frames and series see no change of the array under them, whatever their size."""
    polars = pytest.importorskip("polars")
    data = np.arange(float(size))
    series = polars.Series("s", data)
    frame = polars.DataFrame({"x": data, "y": ["a"] * size})
    lazy = frame.lazy()
    one, other, later = snapshot([series, frame, lazy])
    data[:] = 9
    assert one.to_list() == other["x"].to_list() == list(range(size))
    assert (one.name, other.columns, other.dtypes) == ("s", ["x", "y"], frame.dtypes)
    assert later.collect().shape == frame.shape


def test_other_threads_may_go_on() -> None:
    """C4: a list, dict, set or deque that another thread changes meanwhile does no harm."""
    shared: list[Any] = [[], {}, set(), deque(), OrderedDict(), SimpleNamespace()]
    stop = threading.Event()

    def change() -> None:
        items, by_key, group, line, _, space = shared
        i = 0
        while not stop.is_set():
            i = (i + 1) % 50
            items.append([i]) if i else items.clear()
            by_key.__setitem__(i, [i]) if i else by_key.clear()
            group.add(i) if i else group.clear()
            line.append([i]) if i else line.clear()
            vars(space).__setitem__(str(i), [i]) if i else vars(space).clear()

    thread = threading.Thread(target=change)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # strike between any two lines
    thread.start()
    try:
        for _ in range(2000):
            snapshot(shared)
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()
