"""`kvfoot train refresh`: continued pre-training of a model with RefreshKV's partial cache in place."""

import os
from pathlib import Path
from typing import Annotated

from typer import Option

from kvfoot.cli import training as t
from kvfoot.core.errors import UsageError


def refresh(
    model: Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name")],
    data: t.Data,
    out: Annotated[Path, Option(help="folder for model/, train.json, log.jsonl and the state to resume from")],
    length: Annotated[int, Option(help="tokens of a row, the tail included; of one document")] = 8142,
    tail: Annotated[int, Option(help="last tokens, which read the partial cache")] = 50,
    size: Annotated[int, Option(help="entries of the prefix that they read, per layer and KV head")] = 2048,
    batch: t.Batch = 64,
    steps: Annotated[int, Option(help="updates")] = 1875,
    rate: Annotated[float, Option(help="learning rate")] = 5e-6,
    lora: Annotated[int, Option(help="rank of adapters (needs peft), folded in at the end; 0: full weights")] = 0,
    seed: Annotated[int, Option(help="of the adapters and of the order of the data")] = 0,
    set_: t.Set = None,
    field: t.Column = "text",
    dtype: Annotated[str, Option(help="of the weights; products are bf16 on a GPU whatever it is")] = "float32",
    device: t.Device = "auto",
    checkpointing: t.Checkpointing = True,
    shard: t.Shard = False,
    save_every: t.Save = 100,
    log_every: t.Log = 10,
    tensorboard: t.Board = None,
    resume: t.Resume = False,
    yes: t.Yes = False,
) -> int:
    """Next-token training where a row's tail reads K chosen entries (arXiv 2411.05787); writes a model folder."""
    from kvfoot.train.reading import find_files
    from kvfoot.train.refresh import RefreshOptions

    given = {"steps": steps, "tail": tail, "size": size, "rate": rate, "lora": lora, "seed": seed}
    options = t.recipe(RefreshOptions, set_ or [], given)
    for name, value in (("length", length), ("batch", batch), ("save-every", save_every), ("log-every", log_every)):
        if value < 1:
            raise UsageError(f"--{name} {value}: give at least 1")
    if length - tail <= size:
        raise UsageError(f"--length {length} leaves {length - tail} tokens before the tail: more than --size {size}")
    files = find_files(data)

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kvfoot.cli.console import stderr
    from kvfoot.models.layout import geometry_of
    from kvfoot.models.load import load
    from kvfoot.train.packing import Packed
    from kvfoot.train.refresh import Refresh, Single
    from kvfoot.train.run import RunOptions, check_time, estimate, train
    from kvfoot.train.world import local_device, world

    console = stderr()
    say = lambda line: console.print(line, style="dim", markup=False)  # noqa: E731
    found = load(model, dtype=dtype, device=local_device(device), on_event=say)
    geometry = geometry_of(found.model)
    if length > geometry.positions:
        raise UsageError(f"--length {length} exceeds the model's {geometry.positions} positions")
    begin = found.tokenizer.bos_token_id
    encode = lambda text: found.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
    text = Packed(files, encode, length, seed=seed, begin=[] if begin is None else [begin], column=field)
    text.check()
    if found.model.device.type == "cpu":
        passes = (4 if checkpointing else 3) - (1 if lora else 0)
        check_time(estimate(found.model, steps * batch * length, length, passes), yes, say)
    with world(found.model.device) as processes:
        trainer = Refresh(found.model, options, processes, found.tokenizer, batch if shard else None)
        how = RunOptions(
            out, batch, save_every, log_every, resume, checkpointing,
            data={"files": [path.name for path in files], "length": length}, model_name=model, revision=found.revision,
        )  # fmt: skip
        with t.watch(console, steps, tensorboard, processes) as listener:
            record = train(trainer, Single(text), how, listener)
    if processes.first:
        last = record["last"]
        numbers = f"loss {last['loss']:.3f}, of the tail {last['tail']:.3f}: " if last else ""
        print(f"step {record['step']} of {steps}, {numbers}{out / 'model'}", flush=True)
    return 0
