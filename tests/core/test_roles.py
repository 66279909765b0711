"""Heads files: exact counts at every sparsity, ties, TSV of others, damage in one line."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.roles import HeadGates, full_heads, read_roles, write_roles

GEOMETRY = Geometry(layers=4, kv_heads=3, group=2, head_dim=8, positions=512, identity="abc")


def random_gates(layers: int = 32, heads: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(layers, heads)).astype(np.float32)


def test_the_released_counts() -> None:
    """specs of 2506.17121, section 3.3: K of 256 heads; the quantile keeps one more where trap 19 says so."""
    tenths = [f"0.{i}" for i in range(1, 10)]
    top = [full_heads(256, float(s)) for s in tenths]
    assert top == [230, 204, 179, 153, 128, 102, 76, 51, 25]
    quantile = [full_heads(256, float(s), "quantile") for s in tenths]
    assert quantile == [230, 205, 179, 154, 128, 103, 77, 52, 26]
    values = np.arange(256.0)
    assert quantile == [int((values >= np.quantile(values, float(s))).sum()) for s in tenths]


@pytest.mark.parametrize("scale", ["log_alpha", "alpha"])
def test_exactly_so_many_heads_at_every_sparsity(scale: str) -> None:
    gates = HeadGates(random_gates(5, 7) if scale == "log_alpha" else random_gates(5, 7).clip(0, 1), scale)  # type: ignore[arg-type]
    before = np.ones((5, 7), bool)
    for hundredths in range(100):
        full = gates.full(hundredths / 100)
        assert full.sum() == int((1 - Fraction(hundredths, 100)) * 35)
        assert (before | ~full).all(), "a head that streams at one sparsity streams at every higher one"
        before = full


def test_equal_gates_go_by_layer_and_head() -> None:
    gates = np.array([[0.5, 1, 1], [1, 0.2, 1], [0, 1, 0.5]], np.float32)
    expected = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 1), (0, 0), (2, 2), (1, 1), (2, 0)]
    for k in range(10):
        full = HeadGates(gates, "alpha").full(1 - k / 9 - 1e-6 if k < 9 else 0.0)
        assert {tuple(x) for x in np.argwhere(full)} == set(expected[:k])


def test_without_a_sparsity_one_half_decides() -> None:
    assert HeadGates(np.array([[-0.1, 0.0, 3]]), "log_alpha").full().tolist() == [[False, True, True]]
    assert HeadGates(np.array([[0.49, 0.5, 1]]), "alpha").full().tolist() == [[False, True, True]]
    assert HeadGates(np.array([[0.49, 0.5, 1]]), "alpha", 0.5).full().tolist() == [[False, False, True]]


def test_a_mask_is_applied_as_it_is() -> None:
    """Trap 19: the released evaluation promotes one random streaming head of an exact mask."""
    mask = HeadGates(random_gates(), "log_alpha").full(0.7)
    file = HeadGates(mask, "mask")
    assert np.array_equal(file.full(), mask)
    assert np.array_equal(file.full(0.7), mask)
    with pytest.raises(UsageError, match=r"sparsity=0.5 of 256 heads is 128 full ones, this 0/1 mask has 76"):
        file.full(0.5)


def test_json_gives_back_every_bit(tmp_path: Path) -> None:
    gates = HeadGates(
        random_gates(), "log_alpha", 0.7, "top", 128, 1024, {"name": "m", "identity": "abc"}, {"steps": 9}
    )
    gates.save(tmp_path / "heads.json")
    back = HeadGates.load(tmp_path / "heads.json")
    assert np.array_equal(back.gates, gates.gates)
    assert back.to_json() == gates.to_json()
    assert [p.name for p in tmp_path.iterdir()] == ["heads.json"]


def test_tsv_of_duoattention(tmp_path: Path) -> None:
    """An optimiser step beyond [0, 1] is clipped, as its loader does; sinks and window lie beside."""
    path = tmp_path / "full_attention_heads.tsv"
    path.write_text("0.25\t1.0039\n-0.0156\t1.000000000000000000e+00\n")
    gates = HeadGates.load(path)
    assert (gates.scale, gates.rule, gates.gates.tolist()) == ("alpha", "quantile", [[0.25, 1], [0, 1]])
    assert (gates.sink, gates.window) == (None, None)
    (tmp_path / "config.json").write_text('{"sink_size": 64, "recent_size": 256}')
    again = HeadGates.load(path)
    assert (again.sink, again.window) == (64, 256)
    again.save(tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_text() == "0.25\t1.0\n0.0\t1.0\n"


def test_tsv_of_prulong(tmp_path: Path) -> None:
    gates = HeadGates(random_gates(4, 3), "log_alpha", 0.5)
    path = tmp_path / "masks_sp0.5.tsv"
    path.write_text(gates.to_tsv(mask=True))
    assert path.read_text().count("1") == 6
    back = HeadGates.load(path)
    assert (back.scale, back.rule) == ("mask", "top")
    assert np.array_equal(back.full(), gates.full())


def test_log_alpha_goes_out_as_a_number_in_0_1() -> None:
    """specs of 2506.17121, table of 3.1."""
    soft = HeadGates(np.array([[-4, -1, 0, 2, 4]]), "log_alpha").soft
    assert np.abs(soft - [[0.008, 0.231, 0.5, 0.917, 0.992]]).max() < 5e-4


def test_roles_as_text() -> None:
    assert read_roles("10/01").tolist() == [[True, False], [False, True]]
    assert write_roles(read_roles("101/000")) == "101/000"
    for text in ("", "10/0", "12", "10//01"):
        with pytest.raises(UsageError, match="write 0"):
            read_roles(text)


def test_of_another_model() -> None:
    with pytest.raises(UsageError, match="is of a model of 3 layers x 3 KV heads, this one has 4 x 3"):
        HeadGates(np.ones((3, 3)), "mask").check(GEOMETRY, "file x")
    HeadGates(np.ones((4, 3)), "mask").check(GEOMETRY, "file x")
    HeadGates(np.ones((4, 3)), "mask", model={"identity": "abc"}).check(GEOMETRY, "file x")
    other = HeadGates(np.ones((4, 3)), "mask", model={"name": "other", "identity": "def"})
    with pytest.raises(UsageError, match=r"another model \(other\) of as many layers and heads"):
        other.check(GEOMETRY, "file x")


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan")])
def test_sparsity_outside(sparsity: float) -> None:
    with pytest.raises(UsageError, match=r"in \[0, 1\)"):
        HeadGates(random_gates(), "log_alpha").full(sparsity)
    with pytest.raises(UsageError, match=r"in \[0, 1\)"):
        HeadGates(random_gates(), "log_alpha", sparsity)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"kvfoot": "heads", "gat', "cut or damaged"),
        ('{"model_type": "llama"}', "no heads file"),
        ('{"kvfoot": "heads", "schema": 2}', "of schema 2; this kvfoot reads schema 1"),
        ('{"kvfoot": "heads", "schema": 1}', "damaged"),
        ("0.5\t0.5\n0.5", "no TSV of numbers"),
        ("a\tb", "no TSV of numbers"),
        ("", "one row per layer"),
        ("4.2\t-3", "gates from -3 to 4.2"),
        ("nan\t1", "gates from nan"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        HeadGates.load(path)
    assert line in str(error.value)
    assert str(error.value).startswith(f"heads file {path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change", [("gates", [[1.0, 2.0]]), ("kv_heads", 3), ("sink", -1), ("scale", "beta"), ("sparsity", 1.0)]
)
def test_a_changed_file_is_refused(tmp_path: Path, change: tuple[str, object]) -> None:
    data = json.loads(HeadGates(np.array([[1.0, 2.5]]), "log_alpha", 0.5).to_json())
    data[change[0]] = change[1]
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"^heads file "):
        HeadGates.load(path)


def test_no_such_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file"):
        HeadGates.load(tmp_path / "none.json")
    (tmp_path / "x.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no text"):
        HeadGates.load(tmp_path / "x.tsv")
