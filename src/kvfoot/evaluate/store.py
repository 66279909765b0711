"""Where a sweep's results live: one SQLite file that several processes write, and that kill -9 does not hurt.

A sample is one transaction. Before it is run it is leased by its worker; a lease ends with its owner, which is dead
where its process is gone (same host) or where it has not been heard of for LEASE seconds.
"""

import json
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from kvfoot import __version__
from kvfoot.core.errors import UsageError
from kvfoot.core.records import RunRecord
from kvfoot.core.results import Cell, SampleResult

SCHEMA = 1
FILE = "results.sqlite"
LEASE = 60.0
"""Seconds after which a worker on another host that says nothing is taken for dead."""
BEAT = 5.0
TABLES = (
    "create table meta (key text primary key, value text not null)",
    "create table cells (id integer primary key, key text unique not null)",
    "create table prompts (hash text primary key, text text not null)",
    """create table samples (
        cell integer not null references cells, sample integer not null, prompt text not null references prompts,
        answer text not null, reference text not null, score real not null, nll real, stepped integer not null,
        complete integer not null, record text not null, figures text not null, timeline text not null,
        primary key (cell, sample)) without rowid""",
    "create table owners (id text primary key, host text, pid integer, started real, version text, heard real)",
    """create table leases (
        cell integer not null, sample integer not null, owner text not null, primary key (cell, sample)
        ) without rowid""",
)

Pair = tuple[int, int]
"""A cell's number and a sample's."""


class Store:
    """DIR/results.sqlite. Raises UsageError for a file that is no results file, or one of a newer schema."""

    def __init__(self, folder: Path, *, create: bool = True):
        self.path = folder / FILE
        if self.path.exists():
            check(self.path)
        elif not create:
            raise UsageError(f"{folder}: no {FILE} there: give the folder that kvfoot eval --out wrote")
        folder.mkdir(parents=True, exist_ok=True)
        self._connection = _connect(self.path)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        self.owner = ""
        with self._write() as db:
            if not db.execute("select 1 from sqlite_master where name = 'meta'").fetchone():
                for statement in TABLES:
                    db.execute(statement)
                db.execute("insert into meta values ('schema', ?)", (str(SCHEMA),))

    def close(self) -> None:
        """Ends this process's leases as well."""
        self._stop.set()
        if self.owner:
            with self._write() as db:
                _forget(db, [self.owner])
        self._connection.close()

    # Samples

    def numbers(self, cells: Sequence[Cell]) -> list[int]:
        """The cells' numbers, in order; new cells are entered."""
        with self._write() as db:
            db.executemany("insert or ignore into cells (key) values (?)", [(c.key,) for c in cells])
            return [db.execute("select id from cells where key = ?", (c.key,)).fetchone()[0] for c in cells]

    def put(self, number: int, result: SampleResult) -> None:
        """One sample, and the end of its lease, in one transaction. A sample that is there stays as it is."""
        digest = sha256(result.prompt.encode()).hexdigest()
        row = (
            number, result.index, digest, result.answer, result.reference, result.score, result.nll, result.stepped,
            result.complete, _dump(asdict(result.record)), _dump(result.figures), _dump(result.timeline),
        )  # fmt: skip
        with self._write() as db:
            db.execute("insert or ignore into prompts values (?, ?)", (digest, result.prompt))
            db.execute(f"insert or ignore into samples values ({', '.join('?' * len(row))})", row)
            db.execute("delete from leases where cell = ? and sample = ?", (number, result.index))

    def finished(self, numbers: Sequence[int], samples: int) -> set[Pair]:
        """(cell, sample) of all that is there of some cells' first `samples`."""
        marks = ", ".join("?" * len(numbers))
        query = f"select cell, sample from samples where cell in ({marks}) and sample < ?"
        with self._lock:
            return set(self._connection.execute(query, (*numbers, samples)))

    def progress(self, numbers: Sequence[int], samples: int) -> dict[int, tuple[int, float]]:
        """number -> (finished samples, their mean score) of those cells that have any."""
        wanted = set(numbers)
        with self._lock:
            query = "select cell, count(*), avg(score) from samples where sample < ? group by cell"
            return {c: (n, mean) for c, n, mean in self._connection.execute(query, (samples,)) if c in wanted}

    def results(self) -> list[SampleResult]:
        """Everything, in the order of cells' keys and samples."""
        query = """select key, sample, text, answer, reference, score, nll, stepped, complete, record, figures, timeline
            from samples join cells on cells.id = cell join prompts on hash = prompt order by key, sample"""
        with self._lock:
            return [_result(row) for row in self._connection.execute(query)]

    # Leases

    def claim(self, numbers: Sequence[int], samples: int, block: int) -> list[Pair]:
        """Lease what is unfinished of the first block of `block` samples in which nobody works on these cells.

        Blocks are aligned, so that the same samples run together whoever runs them. Empty where all is done or leased.
        """
        marks = ", ".join("?" * len(numbers))
        with self._write() as db:
            self._bury(db)
            query = f"select cell, sample from {{}} where cell in ({marks}) and sample < ?"
            done, leased = (set(db.execute(query.format(t), (*numbers, samples))) for t in ("samples", "leases"))
            for start in range(0, samples, block):
                stop = min(start + block, samples)
                pairs = [(n, i) for i in range(start, stop) for n in numbers if (n, i) not in done]
                if pairs and not any((n, i) in leased for n in numbers for i in range(start, stop)):
                    db.executemany("insert into leases values (?, ?, ?)", [(*p, self._enlist(db)) for p in pairs])
                    return pairs
        return []

    def give_back(self, pairs: Sequence[Pair]) -> None:
        """End leases whose samples were not run."""
        with self._write() as db:
            db.executemany("delete from leases where cell = ? and sample = ?", pairs)

    def leased(self) -> int:
        """Leases of workers that are alive."""
        with self._write() as db:
            self._bury(db)
            return int(db.execute("select count(*) from leases").fetchone()[0])

    def refuse_other_versions(self) -> None:
        """Raises UsageError where a living worker is of another kvfoot: its samples would mix with ours."""
        with self._write() as db:
            self._bury(db)
            row = db.execute("select version, host, pid from owners where version != ?", (__version__,)).fetchone()
        if row:
            raise UsageError(
                f"{self.path}: kvfoot {row[0]} is writing it now (process {row[2]} on {row[1]}), this is "
                f"{__version__}: wait until it ends, or give another --out"
            )

    def _enlist(self, db: sqlite3.Connection) -> str:
        """This process as an owner, heard of every BEAT seconds from now on."""
        if not self.owner:
            self.owner = uuid.uuid4().hex
            me = (self.owner, socket.gethostname(), os.getpid(), _started(os.getpid()), __version__, time.time())
            db.execute("insert into owners values (?, ?, ?, ?, ?, ?)", me)
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, daemon=True)
                self._beating.start()
        return self.owner

    def _beat(self) -> None:
        with closing(_connect(self.path)) as db:
            while not self._stop.wait(BEAT):
                db.execute("update owners set heard = ? where id = ?", (time.time(), self.owner))

    def _bury(self, db: sqlite3.Connection) -> None:
        """Forget dead owners; one that was taken for dead and lives enlists again."""
        here, now = socket.gethostname(), time.time()
        rows = db.execute("select id, host, pid, started, heard from owners").fetchall()
        dead = [i for i, host, pid, started, heard in rows if not _alive(host == here, pid, started, now - heard)]
        _forget(db, dead)
        if self.owner in dead:
            self.owner = ""

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            db = self._connection
            db.execute("begin immediate")
            try:
                yield db
            except BaseException:
                db.execute("rollback")
                raise
            db.execute("commit")


def check(path: Path) -> None:
    """Raises UsageError unless the file is a results file that this kvfoot reads. Changes nothing."""
    # immutable: without it sqlite leaves two files beside one that nobody has open
    ways = ["mode=ro"] if path.with_name(path.name + "-wal").exists() else ["mode=ro&immutable=1", "mode=ro"]
    for way in ways:
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{way}", uri=True)) as db:
                if not db.execute("select 1 from sqlite_master").fetchone():
                    return  # made a moment ago by another process, and still empty
                row = db.execute("select value from meta where key = 'schema'").fetchone()
            break
        except sqlite3.DatabaseError as error:
            if way == ways[-1]:
                raise UsageError(f"{path} is no results file of kvfoot ({error}): give another folder") from None
    if row is None or not str(row[0]).isdigit():
        raise UsageError(f"{path} is no results file of kvfoot: give another folder")
    if int(row[0]) > SCHEMA:
        raise UsageError(
            f"{path} has schema {row[0]}, this kvfoot ({__version__}) reads up to {SCHEMA}: use a newer kvfoot, or "
            "another folder"
        )


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    db.execute("pragma journal_mode = wal")
    # safe against kill -9; a power cut may cost the last samples, not the file
    db.execute("pragma synchronous = normal")
    return db


def _forget(db: sqlite3.Connection, owners: Sequence[str]) -> None:
    for owner in owners:
        db.execute("delete from leases where owner = ?", (owner,))
        db.execute("delete from owners where id = ?", (owner,))


def _alive(here: bool, pid: int, started: float, silent: float) -> bool:
    if not here:
        return silent < LEASE
    return abs(_started(pid) - started) < 1


def _started(pid: int) -> float:
    """When a process began (a number that is reused belongs to another), 0 where there is none or it is a zombie."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return 0.0


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _result(row: tuple[Any, ...]) -> SampleResult:
    key, index, prompt, answer, reference, score, nll, stepped, complete, record, figures, timeline = row
    return SampleResult(
        cell=Cell(**json.loads(key)),
        index=index,
        prompt=prompt,
        answer=answer,
        reference=reference,
        score=score,
        nll=nll,
        stepped=bool(stepped),
        record=RunRecord.from_json(record),
        figures=json.loads(figures),
        timeline=[(seen, stored) for seen, stored in json.loads(timeline)],
        complete=bool(complete),
    )
