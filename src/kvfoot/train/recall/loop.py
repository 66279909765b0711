"""`train_recall`: the loop. What a step does is a function of the step (plan.py, feed.py), so it resumes exactly."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks.corpus import read_corpus
from kvfoot.evaluate.tasks.registry import find_task
from kvfoot.evaluate.tasks.split import DEV_SIDES, Side
from kvfoot.evaluate.tasks.wording_train import TrainWording
from kvfoot.train.recall.books import encode_books
from kvfoot.train.recall.checkpoint import load_model, load_state, save_model, save_state
from kvfoot.train.recall.evaluation import Material
from kvfoot.train.recall.feed import Batch, Feed, one_thread
from kvfoot.train.recall.model import GPU_BACKENDS, Net, Parameters, init_parameters
from kvfoot.train.recall.muon import Muon
from kvfoot.train.recall.options import RecallOptions
from kvfoot.train.recall.plan import Plan
from kvfoot.train.recall.scores import Encoded, run, score
from kvfoot.train.recall.vocab import BOS, HIDDEN, save_tokenizer, train_tokenizer
from kvfoot.train.recall.writer import ANSWER, BOOK, FILLER, FORK, Writer

PROBES = ("passkey", "keys16", "multivalue", "multiquery", "variables", "chain", "path", "table")
LONG_PROBES = ("keys16", "variables", "chain", "path", "table")
CODES = {"filler": FILLER, "book": BOOK, "answer": ANSWER, "fork": FORK}
Say = Callable[[str], None]


def choose_device(options: RecallOptions, plan: Plan, say: Say) -> torch.device:
    """The GPU, or the CPU once its estimate was accepted with `yes`."""
    if options.device not in (None, "cpu") or (options.device is None and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise UsageError(f"device {options.device!r}: no GPU is visible to torch; leave it out or name 'cpu'")
        return torch.device(options.device or "cuda")
    shape, recipe = options.shape, plan.recipe
    a, b = torch.randn(512, shape.width), torch.randn(shape.width, shape.mlp)
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    rate = 20 * 2 * 512 * shape.width * shape.mlp / (time.perf_counter() - started)
    size = sum(value.numel() for value in init_parameters(shape, 0, 1.0).values())
    hours = plan.steps * recipe.batch * 6 * size / (0.5 * rate) / 3600
    message = f"no GPU: {plan.steps} steps of {recipe.batch} tokens take about {hours:,.1f} hours on this CPU"
    if not options.yes:
        raise UsageError(f"{message}; pass --yes to go on, or run where there is a GPU")
    say(message)
    return torch.device("cpu")


def prepare_writer(options: RecallOptions, plan: Plan, say: Say) -> Writer:
    """Read the books and words of the training side, learn or reload the tokenizer, tokenise."""
    started = time.time()
    corpus = read_corpus(options.data, "train")
    longest = max(length for phase in plan.phases for length in phase.lengths)
    have, need = sum(map(len, corpus.books.values())), 80 * longest
    if have < need or max(map(len, corpus.books.values())) < 8 * longest:
        raise UsageError(
            f"{options.data} is too small: {have:,} characters of training books; plan {plan.recipe.plan!r} needs "
            f"{need:,}, and one book of {8 * longest:,}"
        )
    path = options.out / "tokenizer.json"
    if options.start_from:
        path = options.start_from / "tokenizer.json"
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = train_tokenizer(corpus.books.values(), options.shape.vocabulary)
    save_tokenizer(tokenizer, options.out, options.shape.positions)
    books = encode_books(corpus.books, tokenizer, max(1, options.workers))
    total = sum(map(len, books.tokens.values()))
    say(f"{len(books.tokens)} books, {total:,} tokens, in {time.time() - started:.1f} s")
    return Writer(tokenizer, books, corpus, TrainWording())


class Probe:
    """A few samples of the dev sides, made in the background, scored now and then: the warning of a bad recipe."""

    def __init__(self, options: RecallOptions, plan: Plan, tokenizer: Tokenizer) -> None:
        longest = max(length for phase in plan.phases for length in phase.lengths)
        self.jobs: list[tuple[Side, str, int, int]] = [("dev", "keys4", 2048 if longest >= 2048 else 512, 16)]
        self.jobs += [(side, name, 8192, 8) for side in DEV_SIDES for name in PROBES if longest >= 8192]
        self.jobs += [("dev2", name, 16384, 6) for name in LONG_PROBES if longest >= 16384]
        used = {side for side, *_ in self.jobs}
        material = {side: Material(read_corpus(options.data, side), tokenizer) for side in used}
        jobs = [(material[side].make, (name, length, count, 7)) for side, name, length, count in self.jobs]
        self.pool = multiprocessing.get_context("fork").Pool(2, one_thread) if options.workers else None
        self.made: Callable[[], list[list[Encoded]]] = lambda: [make(job) for make, job in jobs]
        if self.pool:
            waiting = [self.pool.apply_async(make, (job,)) for make, job in jobs]
            self.made = lambda: [result.get() for result in waiting]

    def scores(self, net: Net) -> dict[str, float]:
        found = {}
        for (side, name, length, _), samples in zip(self.jobs, self.made(), strict=True):
            result = score(run(net, samples, length, max(1, 65536 // length)), find_task(name).metric)
            found[f"{name}@{length // 1024 or length}/{side}"] = round(result.score, 3)
        return found


class Trainer:
    """One run: state on the device, the log on disk."""

    def __init__(self, options: RecallOptions, plan: Plan, device: torch.device) -> None:
        self.options, self.plan, self.device = options, plan, device
        recipe, cuda = plan.recipe, device.type == "cuda"
        self.parameters: Parameters = {
            name: value.to(device).requires_grad_()
            for name, value in init_parameters(options.shape, recipe.seed, recipe.qk_gain).items()
        }
        dtype = torch.bfloat16 if cuda else torch.float32
        self.net = Net(options.shape, self.parameters, dtype, compiled=cuda)
        self.plain = Net(options.shape, self.parameters, dtype)
        if cuda:
            self.net.backends = self.plain.backends = list(GPU_BACKENDS)
        self.muon = Muon(self.parameters, recipe.muon_lr, recipe.adam_lr, recipe.decay)
        self.weights = {
            text: torch.tensor(
                [0.0, text * recipe.filler_weight, text * recipe.book_weight, recipe.answer_weight, recipe.fork_weight],
                device=device,
            )
            for text in {phase.text for phase in plan.phases}
        }

    @torch.no_grad()
    def begin_with(self, folder: Path) -> None:
        """Weights of a released model; the optimizer begins anew."""
        shape, parameters = load_model(folder)
        if shape != self.options.shape:
            raise UsageError(f"{folder} has another shape: {shape}; asked for {self.options.shape}")
        for name, value in self.parameters.items():
            value.copy_(parameters[name])

    def step(self, step: int, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One update. -> loss, and [4, 2] sums and counts of the nll by kind of token (as in `CODES`)."""
        now = self.plan.at(step)
        tokens = batch.tokens.to(self.device, non_blocking=True).long()
        codes = batch.codes.to(self.device, non_blocking=True).long()
        weight = self.weights[now.text][codes]
        far = self.net.router.split(batch.group) if now.routed else None
        total, nll = self.net.loss(tokens, weight, far, self._noisy(step, tokens, codes))
        loss = total / weight[:, 1:].sum()
        loss.backward()
        self.muon.step(now.scale)
        return loss.detach(), self._by_kind(nll, codes)

    def _noisy(self, step: int, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """What the model reads: some tokens of running text are hidden, others every time that a page comes round, so
        that it is not learnt by heart. A function of the step; items, questions and answers stay as they are."""
        if not self.plan.recipe.text_noise:
            return tokens
        generator = torch.Generator(self.device).manual_seed(1_000_003 * self.plan.recipe.seed + step)
        dice = torch.rand(tokens.shape, generator=generator, device=self.device)
        hidden = (dice < self.plan.recipe.text_noise) & ((codes == FILLER) | (codes == BOOK)) & (tokens != BOS)
        return tokens.masked_fill(hidden, HIDDEN)

    @torch.no_grad()
    def _by_kind(self, nll: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        masks = [codes[:, 1:] == code for code in CODES.values()]
        return torch.stack([torch.stack([(nll[:, :-1] * mask).sum(), mask.sum()]) for mask in masks])


def train_recall(options: RecallOptions, say: Say = print) -> dict[str, Any]:
    """Train, or resume, kvfoot-recall. -> record: whether it finished, steps, seconds, losses, probes.

    Writes to `options.out`: tokenizer, log.jsonl, state.safetensors at the end of a piece, the bf16 model.
    """
    plan = Plan(options.recipe)
    device = choose_device(options, plan, say)
    writer = prepare_writer(options, plan, say)
    probe = Probe(options, plan, writer.tokenizer)
    trainer = Trainer(options, plan, torch.device("cpu")) if options.resume else None
    first = 0
    if trainer is not None:  # checked on the CPU, before anything is forked
        first = load_state(options.out, options.recipe, options.shape, trainer.parameters, trainer.muon)
    feed = Feed(writer, plan, first, options.workers)
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(options, plan, device)
    if options.start_from and not options.resume:
        trainer.begin_with(options.start_from)
    if options.resume:
        load_state(options.out, options.recipe, options.shape, trainer.parameters, trainer.muon)
    feed.start(pin=device.type == "cuda")
    say(f"plan {plan.recipe.plan}: {plan.steps} steps, phases end at {plan.ends}; from step {first} on {device}")
    try:
        return _run(options, plan, trainer, feed, probe, first, say)
    finally:
        feed.close()
        if probe.pool:
            probe.pool.terminate()


def _run(
    options: RecallOptions, plan: Plan, trainer: Trainer, feed: Feed, probe: Probe, first: int, say: Say
) -> dict[str, Any]:
    log = (options.out / "log.jsonl").open("a")
    started = last = time.time()
    seen, logged, last_probe, killed = 0, 0, plan.elapsed(first), False
    kinds: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    step = first
    end = min(plan.steps, options.stop_step or plan.steps)

    def note(**entry: Any) -> None:
        log.write(json.dumps(entry) + "\n")
        log.flush()
        say(" ".join(f"{key}={value}" for key, value in entry.items()))

    while step < end:
        batch = feed.next()
        loss, kind = trainer.step(step, batch)
        losses.append(loss)
        kinds.append(kind)
        step += 1
        seen += batch.tokens.numel()
        if step == first + 1:
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            say(f"first step after {time.time() - started:.1f} s")
        if step % options.log_every == 0 or step == end:
            mean = torch.stack(losses).mean().item()
            sums = torch.stack(kinds).sum(0).tolist()
            nats = {name: round(a / max(b, 1), 4) for name, (a, b) in zip(CODES, sums, strict=True)}
            now = time.time()
            note(
                step=step, loss=round(mean, 4), **nats, scale=round(plan.at(step - 1).scale, 3), seen=seen,
                rate=round((seen - logged) / (now - last)), queue=feed.ready.qsize(), seconds=round(now - started, 1),
            )  # fmt: skip
            last, logged, kinds, losses = now, seen, [], []
        at = plan.elapsed(step)
        if at - last_probe >= options.probe_every and step < end:
            scores = probe.scores(trainer.plain)
            note(step=step, at=round(at, 1), probe=scores)
            last_probe = at
            if options.kill_after and at >= options.kill_after and next(iter(scores.values())) < 0.8:
                note(step=step, killed="4 keys at 2K below 0.8: the recipe does not learn to retrieve")
                killed = True
                break
        if step in plan.ends and step < end:
            save_model(trainer.parameters, options.shape, options.out)
        if options.piece_minutes and time.time() - started > options.piece_minutes * 60:
            break
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.time() - started
    scores = probe.scores(trainer.plain)
    note(step=step, at=round(plan.elapsed(step), 1), probe=scores, seconds=round(seconds, 1))
    save_state(options.out, step, options.recipe, options.shape, trainer.parameters, trainer.muon)
    save_model(trainer.parameters, options.shape, options.out)
    record = {
        "finished": step == plan.steps, "killed": killed, "first": first, "step": step, "steps": plan.steps,
        "tokens": seen, "seconds": round(seconds, 1), "recipe": asdict(options.recipe),
        "shape": asdict(options.shape), "device": _device_name(trainer.device), "torch": torch.__version__,
        "last_probe": scores,
    }  # fmt: skip
    (options.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def state_folder(out: Path) -> Path:
    """Where a run's state lies; named so that callers do not spell the file."""
    return out / "state.safetensors"
