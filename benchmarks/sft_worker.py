"""One measurement of SFT throughput: one side, one setting, in its own process.

Both sides train the same weights on the same rows in each optimiser step, with the same AdamW
settings. sft.py runs this script.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from common import (
    answer,
    matmul_rate,
    peak_memory,
    posttrain_policy,
    random_qwen2,
    weights_hash,
)

# posttrain: tokens in one forward pass (its only setting for memory; 768 is the default on a CPU)
POSTTRAIN = {"posttrain": 768, "posttrain_8192": 8192}

# TRL: rows in one forward pass, and further keys of its config. `sorted`: the rows of an optimiser
# step are passed in order of length, which leaves little padding (less than TRL's group_by_length
# leaves with the same rows in a step). `packed`: length of a packed row; a step has about as many
# tokens as with the other settings, since the number of rows packed into it cannot be set.
TRL: dict[str, dict[str, Any]] = {
    "padded_1": {"rows": 1},
    "padded_2_sorted": {"rows": 2, "sorted": True},
    "padded_4": {"rows": 4},
    "padded_4_sorted": {"rows": 4, "sorted": True},
    "padded_16": {"rows": 16},
    "padding_free_2": {"rows": 2, "keys": {"padding_free": True}},
    "padding_free_4": {"rows": 4, "keys": {"padding_free": True}},
    "padding_free_16": {"rows": 16, "keys": {"padding_free": True}},
    "packing_bfd": {"packed": 512},
}

ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "max_norm": 1.0}
SHORTEST, LONGEST = 64, 512  # tokens of a row


@dataclass
class Row:
    """A prompt with its completion."""

    input_ids: list[int]
    prompt_length: int  # number of leading tokens that are not trained on

    def labels(self) -> list[int]:
        """Return the ids, with those of the prompt replaced by -100."""
        return [-100] * self.prompt_length + self.input_ids[self.prompt_length :]


@dataclass
class Log:
    """What a side records after each optimiser step."""

    ended: list[float] = field(default_factory=list)  # clock times in seconds
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # so far, without padding
    peak: float = 0.0  # MiB


def make_rows(number: int, vocab: int, seed: int) -> list[Row]:
    """Return rows of random ids and lengths; a quarter of each is the prompt."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(number):
        length = int(torch.randint(SHORTEST, LONGEST + 1, (1,), generator=generator))
        ids = torch.randint(2, vocab, (length,), generator=generator)
        rows.append(Row(ids.tolist(), length // 4))
    return rows


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the measurement that `settings` describe and return its result."""
    side = settings["side"]
    if side == "matmul":
        return {"flops_per_second": matmul_rate()}
    vocab, batch = settings["vocab"], settings["rows_per_step"]
    steps = settings["warmup"] + settings["steps"]
    rows = make_rows(steps * batch, vocab, seed=1)
    model = random_qwen2(settings["shape"], vocab)
    hashed = weights_hash(model)
    start = peak_memory()
    if side in POSTTRAIN:
        log, first = run_posttrain(model, rows, batch, POSTTRAIN[side], settings["folder"])
    else:
        log, first = run_trl(model, rows, batch, TRL[side], settings["folder"])
    seconds = log.ended[-1] - log.ended[settings["warmup"] - 1]
    tokens = log.tokens[-1] - log.tokens[settings["warmup"] - 1]
    reference = reference_loss(random_qwen2(settings["shape"], vocab), first)
    return {
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
        "seconds": seconds,
        "peak_mib": log.peak,
        "start_mib": start,
        "first_loss": log.losses[0],
        "reference_loss": reference,
        "last_loss": log.losses[-1],
        "weights": hashed,
        "steps": len(log.ended),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def run_posttrain(
    model: Any, rows: list[Row], batch: int, micro_batch_tokens: int, folder: str
) -> tuple[Log, list[Row]]:
    """Train with the source, trainer and tracker of `posttrain train`; write no checkpoint.

    Return the log and the rows of the first step.
    """
    from pathlib import Path

    import torch

    from posttrain.algorithms.base import algorithm_named
    from posttrain.common.batch import Sequence
    from posttrain.data.source import OfflineSource
    from posttrain.model.models import Models
    from posttrain.tracking.tracker import Tracker
    from posttrain.training.trainer import Trainer

    log = Log()

    class Clock(Tracker):
        def train(self, step: int, metrics: dict[str, float]) -> None:
            super().train(step, metrics)
            log.ended.append(time.perf_counter())
            log.losses.append(metrics["loss"])
            log.tokens.append(int(metrics["num_tokens"]))
            log.peak = peak_memory()

    class NoCheckpoints:
        def save(self, trainer: Trainer) -> None: ...

        def newest(self) -> None: ...

    num_steps = len(rows) // batch
    sft = algorithm_named("sft")
    config = sft.config(
        max_steps=num_steps,
        batch_size=batch,
        micro_batch_tokens=micro_batch_tokens,
        learning_rate=ADAMW["lr"],
        scheduler="constant",
        warmup=0,
        weight_decay=ADAMW["weight_decay"],
        adam_betas=ADAMW["betas"],
        adam_eps=ADAMW["eps"],
        max_grad_norm=ADAMW["max_norm"],
    )
    sequences = [
        Sequence(torch.tensor(r.input_ids), torch.arange(len(r.input_ids)) >= r.prompt_length)
        for r in rows
    ]
    source = OfflineSource([(s,) for s in sequences], batch, seed=0, rank=0, num_ranks=1)
    # the source shuffles: arrange the examples so that it returns them in their original order
    order = [i for step in range(num_steps) for i in source.order.indices(step)]
    source.examples = [(sequences[i],) for _, i in sorted(zip(order, range(len(order))))]
    tracker = Clock(Path(folder), num_steps, config.logging_steps, logger=[])
    models = Models(posttrain_policy(model), tokenizer=None, stop_token_ids=[])
    checkpoints: Any = NoCheckpoints()
    Trainer(models, source, sft, config, tracker, checkpoints, num_steps).fit()
    tracker.close()
    return log, rows[:batch]


def run_trl(
    model: Any, rows: list[Row], batch: int, setting: dict[str, Any], folder: str
) -> tuple[Log, list[Row]]:
    """Train with TRL's SFTTrainer on tokenised rows.

    Everything that costs extra time is turned off. Return the log and the rows of the first step.
    """
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    log = Log()

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log.ended.append(time.perf_counter())
            log.peak = peak_memory()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                log.losses.append(logs["loss"])
                log.tokens.append(int(logs["num_tokens"]))

    num_steps = len(rows) // batch
    keys = dict(setting.get("keys", {}))
    packed = setting.get("packed")
    if packed:
        # as many tokens in a step as with other settings; shuffled, since packing sorts the rows
        total = sum(len(row.input_ids) for row in rows)
        micro_batches = round(total / num_steps / packed)
        rows = rows + make_rows(len(rows) // 2, int(model.config.vocab_size), seed=2)
        keys |= {"packing": True, "max_length": packed, "shuffle_dataset": True}
        rows_at_once = 1
    else:
        rows_at_once = min(setting["rows"], batch)
        micro_batches = batch // rows_at_once
        if setting.get("sorted"):
            steps = [rows[i : i + batch] for i in range(0, len(rows), batch)]
            rows = [r for step in steps for r in sorted(step, key=lambda r: len(r.input_ids))]
        keys["max_length"] = None
    config = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=micro_batches,
        max_steps=num_steps,
        learning_rate=ADAMW["lr"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch_fused",
        weight_decay=ADAMW["weight_decay"],
        adam_beta1=ADAMW["betas"][0],
        adam_beta2=ADAMW["betas"][1],
        adam_epsilon=ADAMW["eps"],
        max_grad_norm=ADAMW["max_norm"],
        train_sampling_strategy="sequential",
        loss_type="nll",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **keys,
    )
    columns = {
        "input_ids": [row.input_ids for row in rows],
        "labels": [row.labels() for row in rows],
    }
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=empty_tokenizer(),
        callbacks=[Clock()],
    )
    trainer.train()
    first = trainer.train_dataset.select(range(rows_at_once * micro_batches))
    return log, [row for example in first for row in rows_of(example)]


def rows_of(example: dict[str, Any]) -> list[Row]:
    """Return the rows of one example of TRL's data set: itself, or those packed into it."""
    ids, labels = example["input_ids"], example["labels"]
    rows, start = [], 0
    for length in example.get("seq_lengths") or [len(ids)]:
        prompt = labels[start : start + length].count(-100)
        rows.append(Row(ids[start : start + length], prompt))
        start += length
    return rows


def empty_tokenizer() -> Any:
    """Return a tokenizer without words, which TRL requires even if nothing is tokenised."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def reference_loss(model: Any, rows: list[Row]) -> float:
    """Return the mean loss, in nats, over the trained tokens of `rows`, each row run alone.

    It comes from transformers' own head, and reveals a side that lets rows attend to each other.
    """
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor(row.input_ids)
            logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            chosen = logprobs.gather(1, ids[1:, None])[row.prompt_length - 1 :]
            total -= float(chosen.double().sum())
            count += len(chosen)
    assert math.isfinite(total)
    return total / count


if __name__ == "__main__":
    answer(measure)
