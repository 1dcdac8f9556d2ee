"""One measurement of RL throughput: one side, one method, one setting, in its own process.

Both sides start from the same weights and sample from the same prompts in each optimiser step,
with the same token limit, stop tokens, temperature, reward and AdamW settings. rl.py runs this
script.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import answer, peak_memory, posttrain_policy, random_qwen2, weights_hash

METHODS = {"grpo": {"beta": 0.0}, "rloo": {"beta": 0.05}}  # the defaults of TRL 1.16

# posttrain: tokens in one forward pass (its only setting for memory; 768 is the default on a CPU)
POSTTRAIN = {"posttrain": 768}

# TRL: completions in one forward pass, with gradients accumulated over a step, and further keys of
# its config. All completions of a step are generated together, whatever the setting.
TRL: dict[str, dict[str, Any]] = {
    "rows_4": {"rows": 4},
    "rows_8": {"rows": 8},
    "rows_16": {"rows": 16},
    "rows_64": {"rows": 64},
    "rows_8_static_cache": {"rows": 8, "keys": {"cache_implementation": "static"}},
    # finished completions make room for others; without explicit sizes, the cache takes most of the
    # memory
    "rows_8_continuous": {
        "rows": 8,
        "keys": {
            "use_transformers_continuous_batching": True,
            "transformers_continuous_batching_config": {
                "page_size": 128,
                "num_blocks": 192,
                "max_batch_tokens": 1024,
            },
        },
    },
}

ADAMW = {"lr": 1e-6, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "max_norm": 1.0}
SHORTEST, LONGEST = 20, 100  # tokens of a prompt


@dataclass
class Task:
    """The input of both sides."""

    prompts: list[list[int]]  # of all steps, in order
    prompts_per_step: int
    group: int  # completions per prompt
    new_tokens: int
    stops: list[int]
    tokenizer: Any
    method: str
    seed: int  # of the sampling
    folder: str

    @property
    def num_steps(self) -> int:
        """Number of optimiser steps."""
        return len(self.prompts) // self.prompts_per_step

    def rows(self) -> list[dict[str, Any]]:
        """Return the prompts as rows of text, each with its position in `prompts`."""
        texts = [" ".join(f"t{token}" for token in ids) for ids in self.prompts]
        return [{"prompt": text, "position": position} for position, text in enumerate(texts)]


@dataclass
class Log:
    """What a side records about each optimiser step."""

    ended: list[float] = field(default_factory=list)  # clock times in seconds
    lengths: list[list[int]] = field(default_factory=list)  # of the completions
    rewards: list[list[float]] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)  # so far, as the side counts them
    grad_norms: list[float] = field(default_factory=list)
    times: list[dict[str, float]] = field(default_factory=list)  # seconds of generate, score, train
    peak: float = 0.0  # MiB


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the measurement that `settings` describe and return its result."""
    side, vocab, warmup = settings["side"], settings["vocab"], settings["warmup"]
    # each stop token has a probability of about 1 / vocab, so without a limit the mean length of a
    # completion would be new_tokens / 2
    stops = list(range(2 * vocab // settings["new_tokens"]))
    number = (warmup + settings["steps"]) * settings["prompts"]
    task = Task(
        prompts=make_prompts(number, len(stops), vocab),
        prompts_per_step=settings["prompts"],
        group=settings["completions"],
        new_tokens=settings["new_tokens"],
        stops=stops,
        tokenizer=word_tokenizer(vocab),
        method=settings["method"],
        seed=settings["seed"],
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
    # tokens of each step without padding; a prompt counts once for each of its completions
    prompt_tokens = [
        task.group * sum(len(ids) for ids in task.prompts[i : i + task.prompts_per_step])
        for i in range(0, len(task.prompts), task.prompts_per_step)
    ]
    completion_tokens = [sum(lengths) for lengths in log.lengths]
    expected = sum(prompt_tokens) + sum(completion_tokens)
    assert log.num_tokens[-1] == expected, f"{side} lost tokens"
    seconds = log.ended[-1] - log.ended[warmup - 1]
    tokens = sum(prompt_tokens[warmup:]) + sum(completion_tokens[warmup:])
    lengths = [length for step in log.lengths for length in step]
    return {
        "tokens_per_second": tokens / seconds,
        "completion_tokens_per_second": sum(completion_tokens[warmup:]) / seconds,
        "prompt_tokens": sum(prompt_tokens[warmup:]),
        "completion_tokens": sum(completion_tokens[warmup:]),
        "seconds": seconds,
        "time_shares": time_shares(log.times[warmup:], seconds),
        "peak_mib": log.peak,
        "start_mib": start,
        "lengths": lengths,
        "mean_length": sum(lengths) / len(lengths),
        "first_lengths": log.lengths[0],
        "first_rewards": log.rewards[0],
        "first_grad_norm": log.grad_norms[0],
        "weights": hashed,
        "steps": len(log.ended),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def time_shares(times: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Return each part's share of the timed seconds: generate, score, train."""
    return {name: sum(step[name] for step in times) / seconds for name in times[0]}


def make_prompts(number: int, lowest: int, vocab: int) -> list[list[int]]:
    """Return prompts of random lengths, with random ids from `lowest` on (no stop tokens)."""
    import torch

    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (number,), generator=generator).tolist()
    return [torch.randint(lowest, vocab, (n,), generator=generator).tolist() for n in lengths]


def word_tokenizer(vocab: int) -> Any:
    """Return a tokenizer that maps the word t17 to token 17, so that a text has exact ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    # token 0 is one of the stop tokens on both sides
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t0")


def make_reward(task: Task, log: Log) -> Callable[..., list[float]]:
    """Return a reward function: the share of even ids in a completion. It logs what it scores.

    Each call must contain whole groups of one step: all of them, or those that are ready.
    """
    scored: list[int] = []  # positions of the prompts scored so far

    def even_ids(
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        position: list[int],
        **columns: Any,
    ) -> list[float]:
        groups = position[:: task.group]
        assert position == [p for p in groups for _ in range(task.group)], "a group is incomplete"
        if len(scored) == len(log.lengths) * task.prompts_per_step:  # a new step
            log.lengths.append([])
            log.rewards.append([])
        scored.extend(groups)
        first = (len(log.lengths) - 1) * task.prompts_per_step
        step = set(range(first, first + task.prompts_per_step))
        assert set(scored[first:]) <= step, "a prompt belongs to another step"
        assert len(set(scored)) == len(scored), "a prompt was scored twice"
        complete = [ids[-1] in task.stops or len(ids) == task.new_tokens for ids in completion_ids]
        assert all(complete), "a completion ends neither at a stop token nor at the limit"
        assert not any(token in task.stops for ids in completion_ids for token in ids[:-1]), (
            "a completion continues after a stop token"
        )
        rewards = [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
        log.lengths[-1].extend(len(ids) for ids in completion_ids)
        log.rewards[-1].extend(rewards)
        return rewards

    return even_ids


def run_posttrain(model: Any, task: Task, micro_batch_tokens: int) -> Log:
    """Train with the renderer, sampler, source, trainer and tracker of `posttrain train`.

    Return the log. No checkpoint is written.
    """
    from posttrain.algorithms.base import algorithm_named
    from posttrain.data.kinds.prompt import Prompt
    from posttrain.data.render import make_renderer
    from posttrain.model.models import Models
    from posttrain.rollout.config import RolloutConfig
    from posttrain.rollout.native.sampler import NativeSampler
    from posttrain.rollout.source import RolloutSource
    from posttrain.tracking.tracker import Tracker
    from posttrain.training.trainer import Trainer

    log = Log()

    class Clock(Tracker):
        def train(self, step: int, metrics: dict[str, float]) -> None:
            super().train(step, metrics)
            log.ended.append(time.perf_counter())
            log.num_tokens.append(int(metrics["num_tokens"]))
            log.grad_norms.append(metrics["grad_norm"])
            names = [name for name in metrics if name.startswith("time/")]
            log.times.append({name.removeprefix("time/"): metrics[name] for name in names})
            log.peak = peak_memory()

    class NoCheckpoints:
        def save(self, trainer: Trainer) -> None: ...

        def newest(self) -> None: ...

    method = algorithm_named(task.method)
    config = method.config(
        max_steps=task.num_steps,
        batch_size=task.prompts_per_step,
        micro_batch_tokens=micro_batch_tokens,
        learning_rate=ADAMW["lr"],
        scheduler="constant",
        warmup=0,
        weight_decay=ADAMW["weight_decay"],
        adam_betas=ADAMW["betas"],
        adam_eps=ADAMW["eps"],
        max_grad_norm=ADAMW["max_norm"],
        **METHODS[task.method],
    )
    renderer = make_renderer(task.tokenizer, "plain", generation_stops=task.stops)
    assert list(renderer.stop_token_ids) == task.stops
    prompts = [Prompt(renderer.prompt_ids(row), row) for row in task.rows()]
    assert [prompt.input_ids for prompt in prompts] == task.prompts
    policy = posttrain_policy(model)
    models = Models(policy, task.tokenizer, task.stops, temperature=1.0)
    if config.needs_reference:
        models.keep_reference()
    tracker = Clock(Path(task.folder), task.num_steps, config.logging_steps, logger=[])
    source = RolloutSource(
        prompts,
        renderer,
        NativeSampler(policy, RolloutConfig().max_num_seqs),
        make_reward(task, log),
        RolloutConfig(group_size=task.group, max_new_tokens=task.new_tokens),
        task.prompts_per_step,
        task.num_steps,
        task.seed,
        tracker.sample,
        beside=False,
    )
    # the source shuffles: arrange the prompts so that it returns them in their original order
    order = [i for step in range(task.num_steps) for i in source.order.indices(step)]
    source.prompts = [prompts[i] for _, i in sorted(zip(order, range(len(order))))]
    checkpoints: Any = NoCheckpoints()
    Trainer(models, source, method, config, tracker, checkpoints, task.num_steps).fit()
    tracker.close()
    return log


def run_trl(model: Any, task: Task, setting: dict[str, Any]) -> Log:
    """Train with TRL's GRPOTrainer or RLOOTrainer and return the log.

    Everything that costs extra time is turned off.
    """
    import datasets
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    datasets.disable_progress_bars()
    log = Log()
    spent = {"generate": 0.0, "score": 0.0}
    started_training = 0.0

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # needed for the first step only: any other begins when the previous one ends
            nonlocal started_training
            started_training = started_training or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log.ended.append(time.perf_counter())
            seconds = log.ended[-1] - [started_training, *log.ended][-2]
            log.times.append({**spent, "train": seconds - sum(spent.values())})
            spent.update(generate=0.0, score=0.0)
            log.peak = peak_memory()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                log.num_tokens.append(int(logs["num_tokens"]))
                log.grad_norms.append(float(logs["grad_norm"]))

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = work(*args, **kwargs)
            spent[name] += time.perf_counter() - started
            return result

        return wrapped

    config_class, trainer_class = {
        "grpo": (GRPOConfig, GRPOTrainer),
        "rloo": (RLOOConfig, RLOOTrainer),
    }[task.method]
    completions = task.prompts_per_step * task.group
    rows_at_once = min(setting["rows"], completions)
    config = config_class(
        output_dir=task.folder,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=completions // rows_at_once,
        num_generations=task.group,
        max_completion_length=task.new_tokens,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_iterations=1,
        shuffle_dataset=False,
        max_steps=task.num_steps,
        learning_rate=ADAMW["lr"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch_fused",
        weight_decay=ADAMW["weight_decay"],
        adam_beta1=ADAMW["betas"][0],
        adam_beta2=ADAMW["betas"][1],
        adam_epsilon=ADAMW["eps"],
        max_grad_norm=ADAMW["max_norm"],
        seed=task.seed,
        use_vllm=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        log_completions=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **METHODS[task.method],
        **setting.get("keys", {}),
    )
    # every id in this list ends a completion, both in generation and in the loss
    model.generation_config.eos_token_id = task.stops
    # TRL loads the reference from the path in the model's config
    model.save_pretrained(Path(task.folder) / "start")
    model.config._name_or_path = str(Path(task.folder) / "start")
    hashed = weights_hash(model)
    trainer = trainer_class(
        model=model,
        reward_funcs=make_reward(task, log),
        args=config,
        train_dataset=datasets.Dataset.from_list(task.rows()),
        processing_class=task.tokenizer,
        callbacks=[Clock()],
    )
    assert trainer.eos_token_ids == task.stops
    assert trainer._tokenize_prompts([row["prompt"] for row in task.rows()])[0] == task.prompts
    if config.beta > 0:
        assert weights_hash(trainer.ref_model) == hashed, "the reference has other weights"
    trainer._generate_single_turn = timed("generate", trainer._generate_single_turn)
    trainer._calculate_rewards = timed("score", trainer._calculate_rewards)
    trainer.train()
    return log


if __name__ == "__main__":
    answer(measure)
