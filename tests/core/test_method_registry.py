"""Methods by name, options by type, and what is refused."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest

from kvfoot.core import registry
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method
from kvfoot.core.reading import Reader

GEOMETRY = Geometry(layers=4, kv_heads=2, group=2, head_dim=8, positions=1 << 17)


@pytest.fixture
def own() -> Iterator[type[Method]]:
    """A method with an option of every type, registered for one test."""
    registry.methods()

    @registry.register("own", paper="-", category="test", stores="-", reads="-")
    @dataclass(frozen=True)
    class Own(Method):
        count: int = 3
        share: float = 0.5
        flag: bool = False
        kind: Literal["a", "b"] = "a"
        word: str = "x"

    yield Own
    del registry._methods["own"]


def test_the_methods_of_the_foundation() -> None:
    assert {"full", "streaming", "snapkv", "h2o", "random"} <= set(registry.methods())
    assert list(registry.methods()) == sorted(registry.methods())


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_describes_itself(name: str) -> None:
    cls = registry.methods()[name]
    assert cls.name == name
    assert cls.paper == "-" or re.fullmatch(r"\d{4}\.\d{4,5}", cls.paper)
    for line in (cls.category, cls.stores, cls.reads):
        assert line
        assert "\n" not in line
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "the docstring is the one that dataclass writes"
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls().options() == {f.name: f.default for f in fields(cls)}


CONTROL = {"locret": {"seed": 0}, "wgkv": {"seed": 0}}
"""Options without which a method cannot run at all."""


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_takes_or_refuses_a_budget(name: str) -> None:
    chosen = registry.method(name, CONTROL.get(name))
    if chosen.budgeted:
        with pytest.raises(UsageError, match=f"{name} needs a size: give keep .* or budget"):
            chosen.prepare(GEOMETRY, 1000, 512, Budget())
        plan = chosen.prepare(GEOMETRY, 10_000, 512, Budget.of(0.5, evict="chunk"))
        assert plan.evicts
        assert plan.planes[0].name == "position"
    elif isinstance(chosen, Reader):
        sizes = [chosen.prepare(GEOMETRY, 10_000, 512, limits).reads for limits in (Budget(), Budget.of(0.5))]
        assert sizes == [max(chosen.least, int(10_000 * chosen.share)), 5000]
    else:
        with pytest.raises(UsageError, match=f"{name} takes neither keep nor budget"):
            chosen.prepare(GEOMETRY, 1000, 512, Budget.of(0.5))


@pytest.mark.parametrize("name", registry.methods())
def test_every_budgeted_method_refuses_less_than_it_protects(name: str) -> None:
    chosen = registry.method(name, CONTROL.get(name))
    if not chosen.budgeted or chosen.protected < 2:
        pytest.skip("protects nothing")
    with pytest.raises(UsageError, match=r"below sinks \+ window"):
        chosen.prepare(GEOMETRY, 1000, 512, Budget.of(budget=chosen.protected - 1))


def test_published_defaults() -> None:
    assert registry.method("streaming").options() == {"sink": 4}
    assert registry.method("snapkv").options() == {
        "window": 64,
        "kernel": 5,
        "pool": "avg",
        "group": "mean",
        "sink": 0,
        "patch": False,
    }
    assert registry.method("pyramidkv").options() == registry.method("snapkv").options() | {"beta": 20}
    assert registry.method("tova").options() == {}
    assert registry.method("adakv").options() == {
        "window": 32,
        "kernel": 7,
        "pool": "max",
        "group": "mean",
        "sink": 0,
        "patch": False,
        "alpha": 0.2,
    }
    assert registry.method("keynorm").options() == {"skip": 2, "window": 0, "sink": 0}
    assert registry.method("h2o").options() == {"recent": 0.5, "group": "mean"}


@pytest.mark.parametrize(("wrong", "hint"), [("snapk", "snapkv"), ("h20", "h2o"), ("streamin", "streaming")])
def test_an_unknown_method_gets_the_nearest_name(wrong: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown method '{wrong}' \(did you mean {hint}"):
        registry.method(wrong)


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(UsageError, match=r"\(known: .*full, h2o, .*random, .*streaming"):
        registry.method("zzzzzz")
    assert did_you_mean("abc", ["abd", "xyz"]) == " (did you mean abd?)"


def test_unknown_options() -> None:
    with pytest.raises(UsageError, match=r"snapkv has no option 'windw' \(did you mean window\?\)"):
        registry.method("snapkv", {"windw": 3})
    with pytest.raises(UsageError, match=r"full has no option 'window' \(it has none\)"):
        registry.method("full", {"window": 3})


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"count": "7"}, 7),
        ({"count": 7.0}, 7),
        ({"share": "0.25"}, 0.25),
        ({"share": 1}, 1.0),
        ({"flag": "true"}, True),
        ({"flag": "0"}, False),
        ({"flag": True}, True),
        ({"kind": "b"}, "b"),
        ({"word": "y"}, "y"),
    ],
)
def test_strings_are_read_by_the_options_type(own: type[Method], given: dict[str, Any], value: Any) -> None:
    (key,) = given
    found = getattr(registry.method("own", given), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "given",
    [{"count": "many"}, {"count": "3.5"}, {"count": 3.5}, {"count": None}, {"share": "half"}, {"flag": "maybe"}],
)
def test_values_of_another_type_are_refused(own: type[Method], given: dict[str, Any]) -> None:
    (key,) = given
    with pytest.raises(UsageError, match=f"own: {key}="):
        registry.method("own", given)


def test_a_choice_is_one_of_its_words(own: type[Method]) -> None:
    with pytest.raises(UsageError, match="own: kind='c' is none of a, b"):
        registry.method("own", {"kind": "c"})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("snapkv", {"window": 0}),
        ("snapkv", {"kernel": 4}),
        ("snapkv", {"kernel": -1}),
        ("snapkv", {"sink": -1}),
        ("pyramidkv", {"beta": 0}),
        ("pyramidkv", {"window": 0}),
        ("adakv", {"alpha": 1.5}),
        ("adakv", {"alpha": -0.1}),
        ("adakv", {"window": 0}),
        ("keynorm", {"skip": -1}),
        ("keynorm", {"window": -1}),
        ("keynorm", {"sink": -1}),
        ("h2o", {"recent": 1.5}),
        ("h2o", {"recent": "nan"}),
        ("streaming", {"sink": -1}),
        ("random", {"window": -1}),
        ("random", {"sink": -1}),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{name}: "):
        registry.method(name, options)


def test_a_finished_method_takes_no_options() -> None:
    chosen = registry.method("snapkv", {"window": 3})
    assert registry.method(chosen) is chosen
    with pytest.raises(UsageError, match="options go with a method's name"):
        registry.method(chosen, {"window": 4})


def test_a_name_is_taken_once(own: type[Method]) -> None:
    with pytest.raises(UsageError, match="'own' is registered twice"):

        @registry.register("own", paper="-", category="test", stores="-", reads="-")
        @dataclass(frozen=True)
        class Other(Method):
            """Another one."""
