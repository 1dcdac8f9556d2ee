"""One measurement of preference learning: one side, one method, one setting, in its own process.

Both sides start from the same weights, train on the same rows in each optimiser step, and use the
same loss and AdamW settings. preferences.py runs this script.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import answer, peak_memory, posttrain_policy, random_qwen2, weights_hash


@dataclass(frozen=True)
class Method:
    """A method to measure, with its settings."""

    algorithm: str
    keys: dict[str, Any] = field(default_factory=dict)
    """Config keys, which have the same names in posttrain and TRL."""
    precomputed: bool = False
    """Whether the reference's log-probs of all rows are computed before the first step, untimed."""

    def with_key(self, precompute: str) -> dict[str, Any]:
        """Return the keys, plus `precompute` set to True if log-probs are precomputed."""
        return self.keys | ({precompute: True} if self.precomputed else {})


DPO = {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0}
METHODS = {
    "dpo": Method("dpo", DPO),
    "dpo_precomputed": Method("dpo", DPO, precomputed=True),
    "kto": Method("kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
    "orpo": Method("orpo", {"beta": 0.1}),
    "reward_model": Method("reward_model"),
}

# posttrain: tokens in one forward pass (its only setting for memory; 768 is the default on a CPU)
POSTTRAIN = {"posttrain": 768}

# TRL: rows in one forward pass; a pair is two rows and stays together. `sorted`: the rows of a step
# are passed in order of length, which leaves little padding. None of the four trainers can do
# without padding: DPOTrainer ignores `padding_free` with a warning. KTOTrainer needs at least two
# rows for its KL.
TRL: dict[str, dict[str, Any]] = {
    "rows_2": {"rows": 2},
    "rows_2_sorted": {"rows": 2, "sorted": True},
    "rows_4": {"rows": 4},
    "rows_4_sorted": {"rows": 4, "sorted": True},
    "rows_8": {"rows": 8},
    "rows_8_sorted": {"rows": 8, "sorted": True},
    "rows_16": {"rows": 16},
    "rows_16_sorted": {"rows": 16, "sorted": True},
    "rows_32": {"rows": 32},
}
# module of TRL's trainer, prefix of its class name, columns of tokenised completions
TRAINERS = {
    "dpo": ("trl", "DPO", ("chosen_ids", "rejected_ids")),
    "kto": ("trl", "KTO", ("completion_ids",)),
    "orpo": ("trl.experimental.orpo", "ORPO", ("chosen_input_ids", "rejected_input_ids")),
    "reward_model": ("trl", "Reward", ("chosen_ids", "rejected_ids")),
}

ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "max_norm": 1.0}
PROMPT = (16, 200)  # shortest and longest, in tokens
COMPLETION = (16, 300)  # the same, including the stop token
MAX_LENGTH = 1024  # TRL's default; no row is longer
PAD, STOP = 0, 1
LOGGED = (
    "loss",
    "grad_norm",
    "logps/chosen",
    "logps/rejected",
    "rewards/margins",
    "nll_loss",
    "kl",
)
# standard deviation of a reward model's head: with 0, all first rewards and losses would be equal
HEAD_STD = 0.02


@dataclass
class Row:
    """A prompt with one completion. Good (chosen) and bad (rejected) rows alternate."""

    prompt: list[int]
    completion: list[int]  # without the stop token, which both sides add

    def ids(self) -> list[int]:
        """Return the token ids of prompt, completion and stop token."""
        return [*self.prompt, *self.completion, STOP]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion) + 1


@dataclass
class Task:
    """The input of both sides."""

    method: Method
    rows: list[Row]  # of all steps, in order
    rows_per_step: int
    tokenizer: Any
    folder: str

    @property
    def num_steps(self) -> int:
        """Number of optimiser steps."""
        return len(self.rows) // self.rows_per_step

    @property
    def paired(self) -> bool:
        """Whether two successive rows form a pair."""
        return self.method.algorithm != "kto"

    @property
    def items_per_step(self) -> int:
        """Number of pairs in a step; for KTO, of single rows."""
        return self.rows_per_step // 2 if self.paired else self.rows_per_step

    def texts(self, rows: list[Row]) -> list[dict[str, Any]]:
        """Return the rows as text, as a user's file has them: one entry per pair or KTO row."""
        completions = [text_of(row.completion) for row in rows]
        if self.paired:
            return [
                {"prompt": text_of(row.prompt), "chosen": f" {chosen}", "rejected": f" {rejected}"}
                for row, chosen, rejected in zip(rows[0::2], completions[0::2], completions[1::2])
            ]
        return [
            {"prompt": text_of(row.prompt), "completion": f" {text}", "label": index % 2 == 0}
            for index, (row, text) in enumerate(zip(rows, completions))
        ]


@dataclass
class Log:
    """What a side records after each optimiser step."""

    ended: list[float] = field(default_factory=list)  # clock times in seconds
    metrics: list[dict[str, float]] = field(default_factory=list)
    peak: float = 0.0  # MiB


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the measurement that `settings` describe and return its result."""
    side, vocab, warmup = settings["side"], settings["vocab"], settings["warmup"]
    method = METHODS[settings["method"]]
    num_rows = 2 * settings["pairs_per_step"]
    steps = warmup + settings["steps"]
    task = Task(
        method=method,
        rows=make_rows(steps * num_rows, vocab, share_prompts=method.algorithm != "kto"),
        rows_per_step=num_rows,
        tokenizer=word_tokenizer(vocab),
        folder=settings["folder"],
    )
    model = random_qwen2(settings["shape"], vocab)
    hashed = weights_hash(model)
    start = peak_memory()
    if side in POSTTRAIN:
        log = run_posttrain(model, task, POSTTRAIN[side])
    else:
        log = run_trl(model, task, TRL[side])
    assert weights_hash(model) != hashed, f"{side} did not train"
    # TRL's ORPOTrainer does not count tokens
    num_tokens = log.metrics[-1].get("num_tokens")
    assert num_tokens in (None, sum(len(row) for row in task.rows)), f"{side} lost tokens"
    seconds = log.ended[-1] - log.ended[warmup - 1]
    tokens = sum(len(row) for row in task.rows[warmup * num_rows :])
    return {
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
        "seconds": seconds,
        "peak_mib": log.peak,
        "start_mib": start,
        "first": {name: log.metrics[0][name] for name in LOGGED if name in log.metrics[0]},
        "last": {name: log.metrics[-1][name] for name in LOGGED if name in log.metrics[-1]},
        "weights": hashed,
        "steps": len(log.ended),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def make_rows(number: int, vocab: int, share_prompts: bool) -> list[Row]:
    """Return rows of random ids and lengths; if `share_prompts`, successive ones form pairs."""
    import torch

    generator = torch.Generator().manual_seed(4)

    def draw(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        return torch.randint(STOP + 1, vocab, (length,), generator=generator).tolist()

    rows: list[Row] = []
    for index in range(number):
        shared = share_prompts and index % 2 == 1
        prompt = rows[-1].prompt if shared else draw(*PROMPT)
        rows.append(Row(prompt, draw(COMPLETION[0] - 1, COMPLETION[1] - 1)))
    return rows


def by_length(rows: list[Row], paired: bool) -> list[Row]:
    """Return a step's rows in order of length, with good and bad ones still alternating."""
    good, bad = rows[0::2], rows[1::2]
    if paired:
        pairs = sorted(zip(good, bad), key=lambda pair: max(len(row) for row in pair))
    else:
        pairs = list(zip(sorted(good, key=len), sorted(bad, key=len)))
    return [row for pair in pairs for row in pair]


def word_tokenizer(vocab: int) -> Any:
    """Return a tokenizer that maps the word t17 to token 17, so that a text has exact ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    names = {"<pad>": PAD, "<stop>": STOP}
    names |= {f"t{i}": i for i in range(STOP + 1, vocab)}
    words = Tokenizer(WordLevel(names, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<stop>")


def text_of(ids: list[int]) -> str:
    """Return the text that `word_tokenizer` turns into `ids`."""
    return " ".join(f"t{token}" for token in ids)


def reward_head(width: int) -> Any:
    """Return the weights of a reward model's head, [1, width], which both sides start from."""
    import torch

    return HEAD_STD * torch.randn(1, width, generator=torch.Generator().manual_seed(5))


def run_posttrain(model: Any, task: Task, micro_batch_tokens: int) -> Log:
    """Train with the renderer, source, trainer and tracker of `posttrain train`; return the log.

    No checkpoint is written.
    """
    import torch

    from posttrain.algorithms.base import algorithm_named
    from posttrain.data.kinds.pair import to_examples as to_pairs
    from posttrain.data.kinds.unpaired import to_examples as to_judged
    from posttrain.data.render import make_renderer
    from posttrain.data.source import OfflineSource
    from posttrain.model.heads import add_scoring_head
    from posttrain.model.models import Models
    from posttrain.runs.data import Data
    from posttrain.tracking.tracker import Tracker
    from posttrain.training.trainer import Trainer

    log = Log()

    class Clock(Tracker):
        def train(self, step: int, metrics: dict[str, float]) -> None:
            super().train(step, metrics)
            log.ended.append(time.perf_counter())
            log.metrics.append(metrics)
            log.peak = peak_memory()

    class NoCheckpoints:
        def save(self, trainer: Trainer) -> None: ...

        def newest(self) -> None: ...

    method = algorithm_named(task.method.algorithm)
    config = method.config(
        max_steps=task.num_steps,
        batch_size=task.items_per_step,
        micro_batch_tokens=micro_batch_tokens,
        learning_rate=ADAMW["lr"],
        scheduler="constant",
        warmup=0,
        weight_decay=ADAMW["weight_decay"],
        adam_betas=ADAMW["betas"],
        adam_eps=ADAMW["eps"],
        max_grad_norm=ADAMW["max_norm"],
        **task.method.with_key("precompute_reference"),
    )
    renderer = make_renderer(task.tokenizer, "plain")
    arguments: Any = (task.texts(task.rows), renderer, "rows", MAX_LENGTH, "error")
    to_examples = to_pairs if task.paired else to_judged
    examples, _ = to_examples(*arguments, **config.row_options)
    # the second sequence of a KTO example has an unrelated completion and serves its KL only
    sequences = [s for example in examples for s in (example if task.paired else example[:1])]
    assert [s.input_ids.tolist() for s in sequences] == [row.ids() for row in task.rows]
    policy = posttrain_policy(model)
    if config.head == "score":
        add_scoring_head(policy, name=None)
        with torch.no_grad():
            policy.head.weight.copy_(reward_head(model.config.hidden_size))
    models = Models(policy, task.tokenizer, list(renderer.stop_token_ids))
    if config.needs_reference:
        models.keep_reference()
    if config.precomputes_reference:
        from posttrain.runs.train import add_reference_logprobs

        add_reference_logprobs(models, Data(examples, [], [], [], []), micro_batch_tokens)
    source = OfflineSource(examples, task.items_per_step, seed=0, rank=0, num_ranks=1)
    # the source shuffles: arrange the examples so that it returns them in their original order
    order = [i for step in range(task.num_steps) for i in source.order.indices(step)]
    source.examples = [examples[i] for _, i in sorted(zip(order, range(len(order))))]
    tracker = Clock(Path(task.folder), task.num_steps, config.logging_steps, logger=[])
    checkpoints: Any = NoCheckpoints()
    Trainer(models, source, method, config, tracker, checkpoints, task.num_steps).fit()
    tracker.close()
    return log


def run_trl(model: Any, task: Task, setting: dict[str, Any]) -> Log:
    """Train with TRL's trainer of the method and return the log.

    Everything that costs extra time is turned off.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets
    from transformers import TrainerCallback

    datasets.disable_progress_bars()
    log = Log()

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log.ended.append(time.perf_counter())
            log.peak = peak_memory()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                logs = {"rewards/margins" if k == "margin" else k: v for k, v in logs.items()}
                log.metrics.append(logs)

    algorithm = task.method.algorithm
    module, name, columns = TRAINERS[algorithm]
    library = importlib.import_module(module)
    rows, num_rows = task.rows, task.rows_per_step
    if setting.get("sorted"):
        steps = [rows[i : i + num_rows] for i in range(0, len(rows), num_rows)]
        rows = [row for step in steps for row in by_length(step, task.paired)]
    rows_at_once = min(setting["rows"], num_rows)
    config = getattr(library, f"{name}Config")(
        output_dir=task.folder,
        per_device_train_batch_size=rows_at_once // 2 if task.paired else rows_at_once,
        gradient_accumulation_steps=num_rows // rows_at_once,
        max_steps=task.num_steps,
        max_length=MAX_LENGTH,
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
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **task.method.with_key("precompute_ref_log_probs"),
    )
    hashed = weights_hash(model)
    # TRL loads the reference from the path in the model's config
    model.save_pretrained(Path(task.folder) / "start")
    model.config._name_or_path = str(Path(task.folder) / "start")
    trainer = getattr(library, f"{name}Trainer")(
        model=classifier_of(model) if algorithm == "reward_model" else model,
        args=config,
        train_dataset=datasets.Dataset.from_list(task.texts(rows)),
        processing_class=task.tokenizer,
        callbacks=[Clock()],
    )
    assert prepared_ids(trainer.train_dataset, columns) == [row.ids() for row in rows]
    if getattr(trainer, "ref_model", None) is not None:
        assert weights_hash(trainer.ref_model) == hashed, "the reference has other weights"
    trainer.train()
    return log


def classifier_of(model: Any) -> Any:
    """Return a reward model of the class that TRL trains, with the modules of the causal LM."""
    import torch
    from transformers import Qwen2ForSequenceClassification

    model.config.num_labels = 1
    with torch.device("meta"):
        classifier = Qwen2ForSequenceClassification(model.config)
    classifier.model = model.model
    classifier.score.weight = torch.nn.Parameter(reward_head(model.config.hidden_size))
    return classifier


def prepared_ids(rows: Any, completions: tuple[str, ...]) -> list[list[int]]:
    """Return the prompt and completion ids of each row of TRL's data set, in order.

    If there is no prompt column, the completion columns already include the prompt.
    """
    prompts = rows["prompt_ids"] if "prompt_ids" in rows.column_names else [[]] * len(rows)
    return [[*prompt, *row[name]] for prompt, row in zip(prompts, rows) for name in completions]


if __name__ == "__main__":
    answer(measure)
