"""The sampler of the rollout engine (`native`, `server`, `vllm`), checked before training."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.http import bearer_key
from posttrain.data.kinds.prompt import Prompt
from posttrain.model.adapters.saved import check_plain
from posttrain.model.folder import base_model
from posttrain.model.language_model import LanguageModel
from posttrain.rollout.config import RolloutConfig
from posttrain.rollout.engines.client import Server
from posttrain.rollout.engines.dialects import DIALECTS, max_lora_rank
from posttrain.rollout.engines.server import ServerSampler, check_server
from posttrain.rollout.engines.transfer import check_updates
from posttrain.rollout.engines.vllm import VllmSampler, check_installed
from posttrain.rollout.native.copied import CopySampler
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import Sampler, SamplingParams
from posttrain.runs.config import Config


def check_engine(
    config: Config, model: str | None, prompts: list[Prompt], stops: tuple[int, ...]
) -> None:
    """Raise ValueError if the engine cannot run this model, or its servers are not ready.

    `model` is the resolved model name, or None for random weights.
    """
    rollout = config.rollout
    if rollout is None or rollout.engine == "native":
        return
    if model is None:
        raise ValueError(
            f"rollout.engine: {rollout.engine} loads a model by name, and model.scratch has none: "
            "use rollout.engine: native"
        )
    check_plain(config.model, model)
    if rollout.engine == "vllm":
        check_installed()
        if distributed.num_ranks() > 1:
            raise ValueError(
                "rollout.engine: vllm runs in one process: with several ranks use rollout.engine: "
                "server and `vllm serve`"
            )
        return
    full = not config.model.trains_adapter
    if full and DIALECTS[rollout.server_type].start_full is None:
        raise ValueError(
            f"rollout.server_type: {rollout.server_type} gets the policy's weights as a LoRA "
            "adapter, and this run trains all weights: set model.adapter: lora, or use vllm"
        )
    servers, check = build_servers(config, model), server_check(config, model, prompts, stops)
    for server in servers:
        check(server)
    if full and distributed.rank() == 0:
        with probe_folder(Path(rollout.adapter_dir or config.trainer.output_dir)) as folder:
            for server in servers:
                check_updates(server, folder)


def server_check(
    config: Config, model: str, prompts: list[Prompt], stop_token_ids: tuple[int, ...]
) -> Callable[[Server], None]:
    """Return what raises EngineError for a server that cannot generate for this run."""
    rollout = config.rollout or RolloutConfig()
    return partial(
        check_server,
        dialect=DIALECTS[rollout.server_type],
        model=base_model(model),
        room=_longest(config, prompts),
        prompt=prompts[0].input_ids,
        params=SamplingParams(rollout.max_new_tokens, stop_token_ids, rollout.temperature),
    )


@contextmanager
def probe_folder(base: Path) -> Iterator[Path]:
    """Yield an empty folder where weights will be delivered; leave nothing behind."""
    made = [path for path in (base, *base.parents) if not path.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".seen-", dir=base) as folder:
            yield Path(folder).resolve()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"weights cannot be delivered through {base}: {reason}") from None
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def build_servers(config: Config, model: str) -> list[Server]:
    """Return the servers of the rollout section. Raises ValueError if their API key is not set."""
    rollout = config.rollout or RolloutConfig()
    rank = getattr(config.model.adapter, "r", 1)  # check_engine refuses what has none
    dialect = DIALECTS[rollout.server_type]
    full = not config.model.trains_adapter
    start = dialect.start_full if full and dialect.start_full else dialect.start
    start = start.format(model=base_model(model), rank=max_lora_rank(rank))
    key = bearer_key("rollout.api_key_env", rollout.api_key_env)
    return [Server(url, rollout.timeout, rollout.retries, start, key) for url in rollout.servers]


def native_sampler(
    config: Config, policy: LanguageModel, sharded: bool
) -> NativeSampler | CopySampler:
    """Return the native sampler of the policy; call it before the policy is sharded.

    It samples from a copy if the policy is to be sharded, or is trained while the next step's
    completions are sampled.
    """
    rollout = config.rollout or RolloutConfig()
    eval_max_num_seqs = None if config.eval is None else config.eval.max_num_seqs
    max_num_seqs = eval_max_num_seqs or rollout.max_num_seqs
    if not (sharded or rollout.one_step_off):
        return NativeSampler(policy, max_num_seqs)
    value_network, policy.value_network = policy.value_network, None  # sampling does not need it
    # deepcopy's memo: frozen weights are shared with the copy, unless they are about to be sharded
    shared = {} if sharded else {id(p): p for p in policy.parameters() if not p.requires_grad}
    copied = copy.deepcopy(policy, shared)
    policy.value_network = value_network
    return CopySampler(policy, copied, max_num_seqs)


def build_engine(
    config: Config,
    policy: LanguageModel,
    model: str,
    prompts: list[Prompt],
    stops: tuple[int, ...],
    run_dir: Path,
) -> Sampler:
    """Return the sampler of an engine other than `native`, which check_engine has passed."""
    rollout = config.rollout or RolloutConfig()
    folder = run_dir / "adapters"
    if rollout.engine == "vllm":
        return VllmSampler(
            policy,
            base_model(model),
            folder,
            rollout.max_num_seqs,
            _longest(config, prompts),
            rollout.gpu_memory_utilization,
            config.trainer.seed,
        )
    if rollout.adapter_dir is not None:
        folder = Path(rollout.adapter_dir) / run_dir.name
    return ServerSampler(
        policy,
        build_servers(config, model),
        DIALECTS[rollout.server_type],
        folder,
        rollout.max_concurrent_requests,
        rollout.server_patience,
        overlaps=rollout.max_staleness > 0,
        welcome=server_check(config, model, prompts, stops),
        say=say,
    )


def say(line: str) -> None:
    """Print a line about the servers."""
    CONSOLE.print(line, markup=False)


def close_engine(sampler: Sampler | None) -> None:
    """Delete the adapters that an engine other than `native` was given, also on the servers."""
    if isinstance(sampler, ServerSampler | VllmSampler):
        sampler.close()


def _longest(config: Config, prompts: list[Prompt]) -> int:
    """Return the length of the longest prompt plus the longest completion, with evaluation's."""
    assert config.rollout is not None
    new_tokens = config.rollout.max_new_tokens
    if config.eval is not None:
        new_tokens = max(new_tokens, config.eval.max_new_tokens)
    return max(len(prompt.input_ids) for prompt in prompts) + new_tokens
