"""Sessions in files: what a cache belongs to, and what its sequences need to go on (layout: cache/file.py)."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache import file
from kvfoot.cache.trace import Pass, Trace
from kvfoot.core.budget import Cut, PromptPass
from kvfoot.core.errors import BrokenPromise, UsageError
from kvfoot.core.hooks import POSITION, Band, Plan, Plane
from kvfoot.core.registry import method as find_method
from kvfoot.engine.clock import Clock
from kvfoot.engine.graphable import told
from kvfoot.engine.runner import Listener, Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.session import Session

if TYPE_CHECKING:
    from kvfoot.engine.engine import Engine

SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "no_rope_layers",
)
"""Fields of a config that decide what is in a cache; both releases of transformers write them alike."""

UNREAD = 2
"""In `refreshed`, where a row is none of the reader's: NaN in a trace."""

SAMPLE = 16
"""Elements of each weight that go into the model's fingerprint."""


def identity(model: Any, name: str, revision: str) -> dict[str, Any]:
    """What a cache belongs to: name and revision, the config's hash, and a fingerprint of the weights.

    The fingerprint takes 16 elements of every tensor: it tells models apart, it is no proof against forgery.
    """
    config = json.dumps({field: getattr(model.config, field, None) for field in SHAPE}, sort_keys=True, default=str)
    weights = hashlib.sha256()
    for key, value in model.state_dict().items():
        some = value.flatten()[:SAMPLE].to("cpu", torch.float32)
        weights.update(f"{key} {tuple(value.shape)}".encode() + some.numpy().tobytes())
    return {
        "name": name,
        "revision": revision,
        "family": model.config.model_type,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "weights": weights.hexdigest(),
    }


def save(session: Session, path: Path) -> None:
    """See Session.save."""
    runner = session.runner
    cache = runner.cache
    geometry, pool = cache.geometry, cache.pool
    sequences = {"document": session.base} | ({"talk": session.talk} if session.talk is not None else {})
    tensors: dict[str, Tensor] = {}
    for name, sequence in sequences.items():
        base = session.base.rows if name == "talk" else None
        found = file.pack(cache, sequence.rows, base) | _numbers(sequence)
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
    kept = session.base.held if session.base.held is not None else session.base.rows.lens
    header = {
        "model": identity(runner.model, session.config["model"], session.revision),
        "dtype": str(pool.dtype).removeprefix("torch."),
        "geometry": {"layers": geometry.layers, "kv_heads": geometry.kv_heads, "head_dim": geometry.head_dim},
        "config": session.config,
        "document": session.document,
        "tokens": {name: sequence.rows.seen for name, sequence in sequences.items()},
        "entries": int(kept.sum()),
        "bytes": sum(value.nbytes for value in tensors.values()),
        "prefill_s": session.prefill_s,
        "held_bytes": session.clock.held,
        "planes": [[p.name, p.width, str(p.dtype).removeprefix("torch.")] for p in session.base.plan.planes],
        "sequences": {name: _words(sequence) for name, sequence in sequences.items()},
    }
    file.write(path, header, tensors)


def resume(engine: "Engine", path: Path, room: int, listener: Listener | None) -> Session:
    """See Engine.resume."""
    header = file.read_header(path)
    _check_identity(engine, header, path)
    tensors = file.read(path)
    try:
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in header["sequences"]}
        for key, value in tensors.items():
            name, _, rest = key.partition(".")
            parts[name][rest] = value
        plans = {name: _plan(header, name, parts[name]) for name in parts}
        runner = engine.runner([plans["document"]], _room(engine, parts, room), listener, asking=True)
        document = parts["document"]
        file.check(runner.cache, document)
        base = _sequence(runner, header, "document", document, plans["document"], None)
        talk = None
        if "talk" in parts:
            file.check(runner.cache, parts["talk"], document)
            talk = _sequence(runner, header, "talk", parts["talk"], plans["talk"], (base.rows, document))
    except UsageError:
        raise
    except (AttributeError, BrokenPromise, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: damaged ({error}): save the session again") from error
    config = header["config"] | {"backend": engine.backend.name, "page_size": engine.page_size, "resumed": True}
    config["decode"] = told(engine.graph, base.method, base.plan)
    clock = Clock(prefill=header["prefill_s"], held=header["held_bytes"])
    return Session(runner, engine.tokenizer, header["document"], base, config, engine.revision, clock, talk)


def _check_identity(engine: "Engine", header: dict[str, Any], path: Path) -> None:
    dtype = str(engine.dtype).removeprefix("torch.")
    theirs, ours = header["model"], identity(engine.model, engine.name, engine.revision)
    shape = {name: getattr(engine.geometry, name) for name in ("layers", "kv_heads", "head_dim")}
    cure = f"load {theirs['name'] or 'the model that saved it'}, or read the document again"
    if shape != header["geometry"]:
        words = [", ".join(f"{n} {name}" for name, n in one.items()) for one in (header["geometry"], shape)]
        raise UsageError(f"{path}: the cache of a model with {words[0]}, not of this one with {words[1]}: {cure}")
    known = {"", "unknown"}
    differs = next((x for x in ("family", "config", "weights") if theirs[x] != ours[x]), None)
    if (
        differs is None
        and theirs["revision"] != ours["revision"]
        and not known & {theirs["revision"], ours["revision"]}
    ):
        differs = "revision"
    if differs in ("weights", None) and dtype != header["dtype"]:
        raise UsageError(
            f"{path}: saved in {header['dtype']}, this model runs in {dtype}: load it in {header['dtype']}"
        )
    if differs is not None:
        raise UsageError(f"{path}: the cache of another model ({differs} differs): {cure}")


def _room(engine: "Engine", parts: dict[str, dict[str, Tensor]], room: int) -> int:
    """`room` more tokens than the conversation already has."""
    seen = [int(part["seen"]) for part in parts.values()]
    return room + max(seen) - min(seen)


# Sequences


def _numbers(sequence: Sequence) -> dict[str, Tensor]:
    """Everything about a sequence that is arrays, its entries aside."""
    passes = sequence.trace.passes
    none = np.full(sequence.rows.lens.shape, -1)
    scans, loaded, refreshed = (
        [none if value is None else value for value in some]
        for some in ([p.scan for p in passes], [p.loaded for p in passes], [p.refreshed for p in passes])
    )
    held = sequence.held if sequence.held is not None else sequence.rows.lens
    found = {
        "seen": np.array(sequence.rows.seen),
        "tokens": np.array(sequence.tokens, np.int64),
        "promised": sequence.promised.astype(np.int64),
        "held": held.astype(np.int64),
        "passes": np.array([[p.n, p.seen, p.uncommitted, p.side] for p in passes], np.int64).reshape(-1, 4),
        "before": np.stack([p.before for p in passes]).astype(np.int64),
        "scans": np.stack(scans).astype(np.float64),
        "loaded": np.stack(loaded).astype(np.int64),
        "refreshed": np.nan_to_num(np.stack(refreshed).astype(np.float64), nan=UNREAD).astype(np.int8),
    }
    if sequence.plan.band is not None:
        found["band"] = sequence.plan.band.rows
    if sequence.later is not None:
        found["later"] = sequence.later.counts.astype(np.int32)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}


def _words(sequence: Sequence) -> dict[str, Any]:
    """The rest of a sequence."""
    later, band = sequence.later, sequence.plan.band
    return {
        "prompt": sequence.prompt,
        "ordered": [bool(x) for x in sequence.rows.ordered],
        "turn": [int(x) for x in sequence.rows.turn],
        "rows_promised": sequence.rows_promised,
        "later": None if later is None else {"scope": later.scope, "ragged": later.ragged},
        "reads": sequence.plan.reads,
        "band": None if band is None else {"sink": band.sink, "window": band.window},
        "entry_bytes": sequence.trace.entry_bytes,
    }


def _plan(header: dict[str, Any], name: str, numbers: dict[str, Tensor]) -> Plan:
    """The plan's remainder: the prompt is over and has left what it has left."""
    known = {POSITION.name: POSITION}
    planes = tuple(known.get(n) or Plane(n, width, getattr(torch, dtype)) for n, width, dtype in header["planes"])
    said, band = (header["sequences"][name][key] for key in ("later", "band"))
    later = None if said is None else Cut(said["scope"], numbers["later"].numpy(), said["ragged"])
    kept = Cut("all", numbers["held"].numpy().astype(np.int32))
    return Plan(
        (PromptPass(0, header["sequences"]["document"]["prompt"], kept),),
        later,
        planes,
        None if band is None else Band(**band, rows=numbers["band"].numpy()),
        header["sequences"][name]["reads"],
    )


def _sequence(
    runner: Runner, header: dict[str, Any], name: str, numbers: dict[str, Tensor], plan: Plan, base: Any
) -> Sequence:
    words, geometry = header["sequences"][name], runner.cache.geometry
    trace = Trace(geometry, words["entry_bytes"], geometry.entry_bytes(runner.cache.pool.dtype.itemsize))
    arrays = (numbers[key].numpy() for key in ("before", "scans", "loaded", "refreshed"))
    for (n, seen, uncommitted, side), before, *rest in zip(numbers["passes"].tolist(), *arrays, strict=True):
        scan, loaded, refreshed = (None if (value < 0).all() else value for value in rest)
        refreshed = None if refreshed is None else np.where(refreshed == UNREAD, np.nan, refreshed)
        trace.passes.append(Pass(n, seen, before, uncommitted, scan, loaded, refreshed, side))
    rows = file.unpack(runner.cache, numbers, base)
    rows.seen, rows.ordered, rows.turn = int(numbers["seen"]), list(words["ordered"]), list(words["turn"])
    config = header["config"]
    sequence = Sequence(
        tokens=numbers["tokens"].tolist(),
        prompt=words["prompt"],
        rows=rows,
        method=find_method(config["method"], config["options"]),
        plan=plan,
        trace=trace,
        generator=Sampling().generator(0),
        promised=numbers["promised"].numpy().copy(),
        held=numbers["held"].numpy().copy(),
    )
    sequence.rows_promised = words["rows_promised"]
    sequence.verify()
    return sequence
