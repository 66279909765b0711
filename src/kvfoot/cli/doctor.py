"""`kvfoot doctor`: what this machine can run, and a tiny model checked end to end."""

import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")


def doctor() -> int:
    """Show what this machine can run and check a tiny model end to end; exit code 1 where something is wrong."""
    from kvfoot.cli.console import stdout

    console = stdout()
    facts = {
        "packages": _packages,
        "processor": _processor,
        "GPU": _gpu,
        "prefill": _prefill,
        "decode": _decode,
        "cache": _cache,
    }
    for name, said in facts.items():
        console.print(f"{name:10} {said()}", markup=False, soft_wrap=True)
    checks: list[tuple[str, Callable[[], str]]] = [(f"backend {name}", partial(_backend, name)) for name in _backends()]
    checks += [("full attention", _full_equals_transformers), ("snapkv", _snapkv_frees)]
    failed = [name for name, check in checks if not _passes(console, name, check)]
    if failed:
        print(f"kvfoot: not right on this machine: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _passes(console: Any, name: str, check: Callable[[], str]) -> bool:
    """One line per check. Whatever a check raises is what is wrong with the machine."""
    try:
        said, good = check(), True
    except Exception as error:
        said, good = f"{type(error).__name__}: {' '.join(str(error).split())}", False
    mark = "[green]ok[/green]    " if good else "[red]failed[/red]"
    console.print(f"{mark} {name}: ", end="")
    console.print(said, markup=False, soft_wrap=True)
    return good


def _packages() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("kvfoot", "torch", "transformers", "tokenizers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def _processor() -> str:
    import torch

    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    flags = ", ".join(flag for flag in FLAGS if flag in words) or "flags unknown"
    from kvfoot.models.load import _dtype

    kind = str(_dtype("auto", "cpu")).removeprefix("torch.")
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {flags}; default dtype {kind}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    each = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in each)


def _prefill() -> str:
    """By what the triton backend attends to long chunks, by dtype and head size (decision 0054)."""
    import torch

    from kvfoot.attention.triton import fused

    if not torch.cuda.is_available():
        return "chunks on a GPU by cuDNN's attention where torch takes it, not here"
    found = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        q = torch.empty(1, 1, fused.QUERIES, 256, dtype=dtype, device="cuda")
        sizes = [D for D in (64, 80, 96, 128, 256) if fused.available(q[..., :D], q[0, ..., :D])]
        found.append(f"{str(dtype).removeprefix('torch.')} {', '.join(map(str, sizes)) or 'none'}")
    even = f"chunks of {fused.QUERIES} tokens and more, a multiple of {fused.EVEN}"
    return f"{even}: cuDNN at head sizes {'; '.join(found)}; all else by the backend's own kernel"


def _decode() -> str:
    """Whose decode steps become CUDA graphs, and why the others' do not."""
    import torch

    from kvfoot.core.budget import Budget
    from kvfoot.core.errors import UsageError
    from kvfoot.core.geometry import Geometry
    from kvfoot.core.reading import Reader
    from kvfoot.core.registry import methods
    from kvfoot.engine.graphable import why_eager

    usual, reasons = Geometry(32, 8, 4, 128, 1 << 17), dict[str, list[str]]()
    for name, kind in methods().items():
        options = {"roles": "streaming"} if "roles" in kind.__dataclass_fields__ else {}
        budget = Budget.of(keep=0.5) if kind.budgeted or issubclass(kind, Reader) else Budget()
        try:
            chosen = kind(**options)
            why = why_eager(chosen, chosen.prepare(usual, 1 << 14, 512, budget))
        except (TypeError, UsageError):
            why = "its options decide"
        reasons.setdefault(why or "", []).append(name)
    where = "CUDA graphs with the triton backend" if torch.cuda.is_available() else "CUDA graphs on a GPU, not here"
    lines = [f"{where}: {', '.join(reasons.pop('', []))}"]
    lines += [f"step by step: {', '.join(names)} ({why})" for why, names in reasons.items()]
    return "\n           ".join(lines)


def _cache() -> str:
    from kvfoot.models.builtin import BUILTIN, folder_of, home
    from kvfoot.report.table import size

    folder = home()
    if not folder.is_dir():
        return f"{folder} (not made yet; smollm2 is downloaded into it on first use)"
    names = {folder_of(model.gguf_sha256).name: name for name, model in BUILTIN.items()}
    lines = [str(folder)]
    for model in sorted(folder.glob("models/[!.]*")):
        bytes_ = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
        lines.append(f"{names.get(model.name, model.name)}: {size(bytes_)}")
    return "\n           ".join(lines)


def _backends() -> list[str]:
    """Those that a model may get here without being asked for: triton on a GPU whose kernels serve it."""
    import torch

    from kvfoot.attention.backend import BACKENDS, suited

    if not torch.cuda.is_available():
        return list(BACKENDS)
    kernels = suited(64, 3, torch.float32, 16, torch.device("cuda"))
    return list(dict.fromkeys([*BACKENDS, kernels.name]))


def _backend(name: str) -> str:
    """A few numbers through the backend, against plain torch."""
    import torch

    from kvfoot.attention.backend import choose

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(device) for shape in ((2, 3, 5, 64), (2, 9, 64), (2, 9, 64)))
    state = choose(name).attend(q, k, v, 0.25, True)
    scores = torch.einsum("rhnd,rmd->rhnm", q, k) * 0.25
    future = torch.ones(5, 9, dtype=torch.bool, device=device).triu(9 - 5 + 1)
    plain = scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, None]
    return f"runs on {device}, {_close_to(float((state.out.float() - plain).abs().max()), 1e-4)}"


def _close_to(difference: float, limit: float) -> str:
    if not difference < limit:
        raise ArithmeticError(f"differs from plain torch by {difference:.1e}, allowed is {limit:.0e}")
    return f"largest difference {difference:.1e}"


def _tiny() -> Any:
    """A random Llama in fp32: 2 layers, 4 query heads, 2 KV heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.2, bos_token_id=None, eos_token_id=None))
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _prompt(length: int) -> list[int]:
    return [(i * i * 31 + 7 * i) % 128 for i in range(length)]


def _full_equals_transformers() -> str:
    import torch

    from kvfoot.engine.engine import Engine

    model, prompt = _tiny(), _prompt(300)
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        plain = model(ids).logits[0, -1].float()
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    engine = Engine(model, name="tiny")
    try:
        results = engine.generate([prompt], chunk=64, max_new_tokens=16)
        if results[0].tokens != wanted[0, len(prompt) :].tolist():
            raise ArithmeticError("the greedy tokens are not those of transformers")
        plan = engine.plan(_method("full"), _budget(None), len(prompt), 64, 0)
        runner = engine.runner([plan], 0)
        from kvfoot.engine.sampler import Sampling

        logits = runner.prefill(runner.open(prompt, _method("full"), plan, Sampling(), 0))
        said = _close_to(float((logits - plain).abs().max()), 1e-4)
    finally:
        engine.close()
    return f"equal to transformers on a tiny model: 16 tokens, {said} in the logits"


def _snapkv_frees() -> str:
    from kvfoot.engine.engine import Engine
    from kvfoot.report.table import size

    model, prompt = _tiny(), _prompt(800)
    engine = Engine(model, name="tiny")
    try:
        options = {"window": 16}
        run = engine.generate([prompt], method="snapkv", options=options, keep=0.25, chunk=256, max_new_tokens=8)[0]
    finally:
        engine.close()
    memory, kept = run.record.memory, run.record.sequences[0].kept
    if any(count != 200 for layer in kept for count in layer):
        raise ArithmeticError(f"a quarter of 800 entries is 200, kept were {kept}")
    entry = engine.geometry.entry_bytes(engine.dtype.itemsize) + 4  # a kept entry carries its position
    promised = engine.geometry.rows * (-(-200 // engine.page_size) * engine.page_size) * entry
    if memory.held_bytes != promised:
        raise ArithmeticError(f"{memory.held_bytes} bytes are held, promised were {promised}")
    return f"at keep=0.25 the pool holds {size(memory.held_bytes)} of {size(memory.dense_bytes)}, as promised"


def _method(name: str) -> Any:
    from kvfoot.core.registry import method

    return method(name)


def _budget(keep: float | None) -> Any:
    from kvfoot.core.budget import Budget

    return Budget.of(keep)
