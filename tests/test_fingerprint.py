"""What changes a digest, what does not, and that another process computes the same one."""

from __future__ import annotations

import copyreg
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

import vestige
from vestige import fingerprint as fingerprint_module
from vestige.fingerprint import fingerprint
from vestige.training import (
    CNN,
    MLP,
    EstimatorRecipe,
    FunctionRecipe,
    Recipe,
    TorchRecipe,
    cosine,
)


def module_of(source: str, name: str = "mine", **given: Any) -> ModuleType:
    """A module of the user's, from its source."""
    module = ModuleType(name)
    vars(module).update(given)
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), vars(module))
    return module


def digest_of(source: str, what: str = "build", name: str = "mine", **given: Any) -> str:
    return fingerprint(getattr(module_of(source, name, **given), what))


# --- functions ---------------------------------------------------------------------------------

BASE = "def build(x, width=3):\n    y = x + 1\n    return y * width\n"

CHANGED = {
    "a constant": BASE.replace("1", "2"),
    "a default": BASE.replace("width=3", "width=4"),
    "an operator": BASE.replace("*", "-"),
    "a keyword-only default": BASE.replace("width=3", "*, width=3"),
    "a called name": BASE.replace("y * width", "max(y, width)"),
    "an exception handled": BASE.replace(
        "    return", "    try: y\n    except Exception: pass\n    return"
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_function_changes_it(change: str) -> None:
    assert digest_of(CHANGED[change]) != digest_of(BASE)


def test_where_a_function_is_written_does_not_matter() -> None:
    moved = f"import os\n# a comment\n\n\n{BASE}"
    spread = BASE.replace("x, width=3", "\n    x,\n    width=3,\n")
    assert digest_of(BASE) == digest_of(moved) == digest_of(spread)
    assert digest_of(BASE) == digest_of(BASE, name="renamed")


def test_names_matter_beside_bytecode() -> None:
    one = "def f(x): return x\ndef g(x): return -x\ndef build(x): return f(x)\n"
    assert digest_of(one) != digest_of(one.replace("return f(x)", "return g(x)"))


USED = {
    "a number": ("WIDTH = 3\n", "WIDTH = 4\n", "def build(): return WIDTH\n"),
    "an attribute of a function": (
        "def f(): return f.w\nf.w = 3\n",
        "def f(): return f.w\nf.w = 4\n",
        "def build(): return f()\n",
    ),
    "a table": ("C = {'w': 3}\n", "C = {'w': 4}\n", "def build(): return C['w']\n"),
    "a list": ("C = [1, 2]\n", "C = [2, 1]\n", "def build(): return C[0]\n"),
    "None, later a number": ("W = None\n", "W = 1\n", "def build(): return W\n"),
    "a function": ("def f(): return 1\n", "def f(): return 2\n", "def build(): return f()\n"),
    "two functions away": (
        "def g(): return 1\ndef f(): return g()\n",
        "def g(): return 2\ndef f(): return g()\n",
        "def build(): return f()\n",
    ),
    "in a lambda": ("WIDTH = 3\n", "WIDTH = 4\n", "def build(): return (lambda: WIDTH)()\n"),
    "in a nested function": (
        "WIDTH = 3\n",
        "WIDTH = 4\n",
        "def build():\n  def inner():\n    return [WIDTH for _ in range(2)]\n  return inner()\n",
    ),
    "an imported name": (
        "from math import floor as near\n",
        "from math import ceil as near\n",
        "def build(): return near(1.5)\n",
    ),
    "a library function": (
        "from torch.nn.functional import relu as act\n",
        "from torch.nn.functional import gelu as act\n",
        "def build(): return act\n",
    ),
    "a built-in function": (
        "from torch import relu as act\n",
        "from torch import tanh as act\n",
        "def build(): return act\n",
    ),
    "a class": (
        "class A:\n    def f(self): return 1\n",
        "class A:\n    def f(self): return 2\n",
        "def build(): return A().f()\n",
    ),
    "an object": (
        "from types import SimpleNamespace as N\nC = N(w=3)\n",
        "from types import SimpleNamespace as N\nC = N(w=4)\n",
        "def build(): return C.w\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", USED)
def test_what_a_function_uses_of_its_module_changes_it(what: str) -> None:
    before, after, user = USED[what]
    assert digest_of(before + user) != digest_of(after + user)
    unused = "def build(): return 7\n"
    assert digest_of(before + unused) == digest_of(after + unused)


def test_an_attribute_is_not_a_global_of_its_name() -> None:
    user = "def build(self): return self.net(3)\n"
    assert digest_of("net = 1\n" + user) == digest_of("net = 2\n" + user)
    both = "def build(self): return self.net(net)\n"
    assert digest_of("net = 1\n" + both) != digest_of("net = 2\n" + both)


def test_another_module_of_the_users_is_followed() -> None:
    user = "def build(): return nets.width() + nets.DEPTH\n"
    source = "DEPTH = 2\nOTHER = 5\ndef width(): return 3\n"

    def with_nets(nets: str) -> str:
        return digest_of(user, nets=module_of(nets, "nets"))

    assert with_nets(source) == with_nets(source.replace("OTHER = 5", "OTHER = 6"))
    assert with_nets(source) != with_nets(source.replace("DEPTH = 2", "DEPTH = 3"))
    assert with_nets(source) != with_nets(source.replace("return 3", "return 4"))
    imported = "def build(): return width()\n"
    digests = {
        digest_of(imported, width=module_of(nets, "nets").width)
        for nets in (source, source.replace("return 3", "return 4"))
    }
    assert len(digests) == 2


def test_submodules_are_followed() -> None:
    def with_weight(weight: float) -> str:
        package, inner = (
            ModuleType("pkg"),
            module_of(f"W = {weight}\ndef w(): return W\n", "pkg.sub"),
        )
        vars(package).update(sub=inner)
        vars(inner)["pkg"] = package  # as `import pkg.sub` within it would
        return digest_of("def build(): return pkg.sub.w()\n", pkg=package)

    assert with_weight(1.0) == with_weight(1.0) != with_weight(9.0)


IMPORTING = {
    "from": "def build():\n    from owned_a import C\n    return C\n",
    "as": "def build():\n    import owned_a as o\n    return o.C\n",
    "inner": "def build():\n    def inner():\n        import owned_a\n    return inner\n",
    "package": "def build():\n    from owned_pkg import part\n    return part.C\n",
    "relative": "def build():\n    from . import part\n    return part.C\n",
    "through another": "def build():\n    import owned_b\n    return owned_b.owned_a.C\n",
}


@pytest.mark.parametrize("what", IMPORTING)
def test_files_imported_within_a_function_are_read(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "owned_pkg").mkdir()
    (tmp_path / "owned_pkg" / "__init__.py").write_text("")
    (tmp_path / "owned_b.py").write_text("import owned_a, numpy, broken_and_absent\n")
    own = [tmp_path / "owned_a.py", tmp_path / "owned_pkg" / "part.py"]

    def digest(text: str) -> str:
        for path in own:
            path.write_text(text)
        importlib.invalidate_caches()
        fingerprint_module._file_of.cache_clear()
        package = "owned_pkg" if what == "relative" else ""
        return digest_of(IMPORTING[what], __package__=package)

    assert digest("C = 1\n") == digest("C = 1\n") != digest("C = 2\n")


def test_methods_of_plain_objects_and_paths() -> None:
    assert fingerprint([1.0, 0.5].__getitem__) == fingerprint([1.0, 0.5].__getitem__)
    assert fingerprint([1.0, 0.5].__getitem__) != fingerprint([0.1, 0.01].__getitem__)
    assert fingerprint([1.0].index) != fingerprint([1.0].count)
    path = Path("some") / "where"
    before = fingerprint(path)
    hash(path), str(path)
    assert fingerprint(path) == before != fingerprint(path / "else")


def maker(width: Any) -> Callable[[], Any]:
    return lambda: width


def test_closures_partials_and_methods() -> None:
    assert fingerprint(maker(3)) == fingerprint(maker(3)) != fingerprint(maker(4))
    assert fingerprint(maker(np.arange(3))) != fingerprint(maker(np.arange(3.0)))
    assert fingerprint(maker(torch.float32)) != fingerprint(maker(torch.float64))
    partial = functools.partial
    assert fingerprint(partial(max, 1)) == fingerprint(partial(max, 1))
    different = [partial(max, 1), partial(max, 2), partial(min, 1), partial(max, 1, key=abs)]
    assert len({fingerprint(p) for p in different}) == 4

    class Counter:
        def __init__(self, n: int) -> None:
            self.n = n

        def up(self) -> int:
            return self.n + 1

    assert fingerprint(Counter(1).up) == fingerprint(Counter(1).up) != fingerprint(Counter(2).up)


def test_wrapped_functions_are_read() -> None:
    def cached(n: int) -> Callable[[], int]:
        inner: Callable[[], int] = module_of(f"def f(): return {n}\n").f
        return functools.lru_cache(inner)

    assert fingerprint(cached(1)) == fingerprint(cached(1)) != fingerprint(cached(2))

    def without_gradients(n: int) -> Callable[[], int]:
        wrapped: Callable[[], int] = torch.no_grad()(module_of(f"def f(): return {n}\n").f)
        return wrapped

    assert fingerprint(without_gradients(1)) == fingerprint(without_gradients(1))
    assert fingerprint(without_gradients(1)) != fingerprint(without_gradients(2))


def test_recursion_ends() -> None:
    one = "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n and even(n - 1)\n"
    assert digest_of(one, "even") == digest_of(one, "even")
    assert digest_of(one, "even") != digest_of(one.replace("n == 0", "n == 2"), "even")
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint(loop) != fingerprint([1, 1])

    def unbound() -> Any:
        return later

    before = fingerprint(unbound)
    later = 3
    assert fingerprint(unbound) != before


# --- plain values ------------------------------------------------------------------------------


def test_values_are_told_apart() -> None:
    rng = np.arange(4)
    values = [
        None, 0, 0.0, False, "0", b"0", "", [], (1, 2), [[1], 2], [1, [2]], [1, 2, []], [12],
        ["1", "2"], ["12"], ["a\0b"], ["a", "b"], {"a": 1}, {"a": {"b": 1}}, {"a": {}, "b": 1},
        rng, rng.reshape(2, 2), rng.astype(np.int32), rng[::-1], np.array(["a", None], object),
        torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3), np.float32(1),
        np.float64(1), SimpleNamespace(a=1), torch.device("cpu"), torch.device("meta"),
        np.dtype("f4"), Path("a"), Path("b"), range(3), range(4),
    ]  # fmt: skip
    digests = [fingerprint(value) for value in values]
    alike = [values[i] for i, d in enumerate(digests) if digests.index(d) != i]
    # lists and tuples of the same items are one
    assert not alike
    assert fingerprint([1, 2]) == fingerprint((1, 2))


def test_order_matters_in_lists_only() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"x", "y"}) == fingerprint({"y", "x"})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_layout_in_memory_does_not_matter() -> None:
    table = np.arange(6.0).reshape(2, 3)
    assert fingerprint(table) == fingerprint(np.asfortranarray(table))
    assert fingerprint(torch.tensor(table)) == fingerprint(torch.tensor(table.T.copy()).T)


# --- classes and modules -----------------------------------------------------------------------

CLASSES = """
import torch
from torch import nn

class Base(nn.Module):
    SCALE = 2.0
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def scaled(self, x):
        return x * self.SCALE
    @property
    def half(self):
        return 0.5
    @staticmethod
    def shift(x):
        return x + 1

class Net(Base):
    KINDS = ("a", "b")
    def forward(self, x):
        return self.shift(self.scaled(self.layer(x))) * self.half
"""

IN_CLASSES = {
    "forward": ("* self.half", "/ self.half"),
    "a method of a base class": ("x * self.SCALE", "x / self.SCALE"),
    "a number of a base class": ("SCALE = 2.0", "SCALE = 3.0"),
    "the constructor of a base class": ("nn.Linear(2, 2)", "nn.Linear(2, 2, bias=False)"),
    "a property": ("return 0.5", "return 0.25"),
    "a static method": ("x + 1", "x - 1"),
    "a tuple": ('("a", "b")', '("a", "c")'),
    "a base class": ("class Net(Base)", "class Net(nn.Module)"),
}


@pytest.mark.parametrize("what", IN_CLASSES)
def test_a_changed_class_changes_it(what: str) -> None:
    changed = CLASSES.replace(*IN_CLASSES[what])
    assert changed != CLASSES
    assert digest_of(CLASSES, "Net") == digest_of(CLASSES, "Net", name="renamed")
    assert digest_of(CLASSES, "Net") != digest_of(changed, "Net")
    built = "def build(): return Net()\n"
    assert digest_of(CLASSES + built) != digest_of(changed + built)


CALLABLE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Builder:
    width: int = 3
    def __call__(self):
        return self.width + 1

class Slotted:
    __slots__ = ("width",)
    def __init__(self, width):
        self.width = width
"""


def test_objects_are_their_class_and_their_state() -> None:
    mine = module_of(CALLABLE)
    changed = module_of(CALLABLE.replace("self.width + 1", "self.width + 2"))
    assert fingerprint(mine.Builder(3)) == fingerprint(mine.Builder())
    assert fingerprint(mine.Builder(3)) != fingerprint(mine.Builder(4))
    assert fingerprint(mine.Builder(3)) != fingerprint(changed.Builder(3))
    assert fingerprint(mine.Slotted(3)) == fingerprint(mine.Slotted(3))
    assert fingerprint(mine.Slotted(3)) != fingerprint(mine.Slotted(4))
    assert fingerprint(MLP(4, 2)) != fingerprint(MLP(4, 2, hidden=(64,)))
    assert fingerprint(MLP(4, 2)) != fingerprint(CNN(4, 2, 2))


def test_modules_are_their_tensors_and_their_settings() -> None:
    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return MLP(6, 3, hidden=(5,))()

    net = seeded()
    assert fingerprint(net) == fingerprint(seeded())
    net.register_forward_hook(lambda *_: None).remove()
    assert fingerprint(net) == fingerprint(seeded())
    with torch.no_grad():
        next(net.parameters())[0, 0] += 1
    assert fingerprint(net) != fingerprint(seeded())
    # settings that a module's repr does not show
    losses = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(reduction="sum"),
    ]
    assert len({fingerprint(loss) for loss in losses}) == 4


def test_estimators_are_their_parameters_not_what_they_learned() -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    fitted = LogisticRegression(C=2.0).fit(x, y)
    assert fingerprint(fitted) == fingerprint(LogisticRegression(C=2.0))
    assert fingerprint(fitted) != fingerprint(LogisticRegression(C=3.0))
    pipes = [
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
        make_pipeline(LogisticRegression()),
        make_pipeline(FunctionTransformer(np.abs), LogisticRegression()),
        make_pipeline(FunctionTransformer(np.sign), LogisticRegression()),
        RandomForestClassifier(max_depth=2),
        RandomForestClassifier(max_depth=3),
    ]
    assert len({fingerprint(pipe) for pipe in pipes}) == len(pipes)


# --- recipes -----------------------------------------------------------------------------------


def test_each_field_of_a_recipe_is_in_its_key() -> None:
    build = MLP(4, 2)
    recipes: list[Recipe] = [
        TorchRecipe(build),
        TorchRecipe(MLP(4, 3)),
        TorchRecipe(build, epochs=21),
        TorchRecipe(build, steps=5),
        TorchRecipe(build, batch_size=65),
        TorchRecipe(build, optimizer="adam"),
        TorchRecipe(build, lr=0.2),
        TorchRecipe(build, momentum=0.1),
        TorchRecipe(build, weight_decay=0.1),
        TorchRecipe(build, schedule=cosine),
        TorchRecipe(build, loss=nn.CrossEntropyLoss()),
        TorchRecipe(build, logits=lambda output: output[0]),
        TorchRecipe(build, augment=lambda x, generator: -x),
        TorchRecipe(build, early_stopping=vestige.training.EarlyStopping()),
        TorchRecipe(build, device="cpu:0"),
        EstimatorRecipe(LogisticRegression()),
        EstimatorRecipe(LogisticRegression(), floor=0.1),
        FunctionRecipe(lambda x, y, seed: x),
        FunctionRecipe(lambda x, y, seed: x, build),
        FunctionRecipe(lambda x, y, seed: x, build, lambda output: output[0]),
        FunctionRecipe(lambda x, y, seed: x, MLP(4, 3)),
    ]
    keys = [recipe.key() for recipe in recipes]
    assert len(set(keys)) == len(keys)
    assert TorchRecipe(MLP(4, 2)).key() == keys[0]


def test_a_forward_pass_that_is_imported_while_building_is_in_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = []
    for source in (CLASSES, CLASSES.replace("* self.half", "/ self.half")):
        monkeypatch.setitem(sys.modules, "mynets", module_of(source, "mynets"))
        build = module_of("def build():\n    from mynets import Net\n    return Net()\n").build
        keys.append((TorchRecipe(build).key(), FunctionRecipe(max, build).key()))
    assert keys[0][0] != keys[1][0] and keys[0][1] != keys[1][1]


# --- other processes ---------------------------------------------------------------------------

SCRIPT = (
    CLASSES
    + CALLABLE
    + '''
import functools, logging
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from vestige.training import MLP, EstimatorRecipe, FunctionRecipe, TorchRecipe
from vestige.fingerprint import fingerprint

WORDS = {"one", "two", "three", "four"}
LOG = logging.getLogger("mine")
TABLE = {"lr": 0.1, "kinds": frozenset({"x", "y", "z"})}

@functools.lru_cache
def cached(word):
    return word in {"alpha", "beta", "gamma", "delta"}

def build():
    """Constants of a set become a frozenset in the bytecode, in the order of a hash."""
    class Inner(Net):
        pass
    LOG.debug("building")
    for word in ("alpha", "omega"):
        if word in {"alpha", "beta", "gamma", "delta"} or word in WORDS or cached(word):
            TABLE["lr"]
    return Inner()

print(TorchRecipe(build, augment=lambda x, g: x if "a" in {"a", "b", "c"} else -x).key())
print(TorchRecipe(Net).key(), TorchRecipe(MLP(4, 2)).key())
print(EstimatorRecipe(RandomForestClassifier()).key())
print(fingerprint([Builder(3), Slotted(3), WORDS, TABLE, cached, np.random.Generator, object()]))
print(fingerprint(functools.partial(build, {"p", "q", "r"})))
'''
)


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(SCRIPT)
    (tmp_path / "two.py").write_text("# moved\n\n" + SCRIPT)
    source = str(Path(vestige.__file__).parents[1])
    running = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / name)],
            env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, seed in (("one.py", "0"), ("one.py", "12345"), ("two.py", "7"))
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert len(said[0].split()) == 6
    assert said[0] == said[1] == said[2]


def test_a_class_whose_objects_were_pickled_keeps_its_fingerprint() -> None:
    class Own:
        pass

    before = fingerprint(Own)
    # pickle notes the slots of a class in the class
    copyreg._slotnames(Own)  # type: ignore[attr-defined]
    assert "__slotnames__" in vars(Own) and fingerprint(Own) == before
