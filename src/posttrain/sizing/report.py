"""The forecast of a run as text: tables of strategies, a recommendation, servers."""

from __future__ import annotations

from posttrain.common.sizes import in_bytes, in_units, millions, rate
from posttrain.sizing.asked import Asked
from posttrain.sizing.forecast import (
    SHARE_OF_MEMORY,
    Forecast,
    Hardware,
    Network,
    dtype_name,
    fitting,
    flops_per_token,
)
from posttrain.sizing.servers import Rates, busy_share, servers_for

MUCH_SLOWER = 1.5  # ddp is recommended up to this multiple of the fastest prediction
BUSY = 0.95  # share of the time for which trainers are to be kept busy
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


def facts(asked: Asked, network: Network, hardware: Hardware, gpus: int, nodes: int) -> list[str]:
    """Return what the forecast is of, line by line."""
    trainer, rows = asked.config.trainer, len(asked.lengths)
    kinds = "prompts" if asked.config.algorithm.online else "rows"
    longest = "" if asked.measured else ", all of the greatest length: there is no tokenizer"
    lines = [
        f"model: {millions(network.parameters)} parameters, {millions(network.trainable)} "
        f"trained, {network.layers} layers, computed in {dtype_name(asked.compute)}",
        f"run: {trainer.type}, {asked.num_steps:,} steps of {trainer.examples_per_step:,} of "
        f"{rows:,} {kinds}{longest}; {asked.tokens_per_step:,.0f} tokens a step, "
        f"{trainer.token_budget:,} in a micro-batch",
        f"ranks: {nodes} x {gpus} with {in_bytes(hardware.memory)}, of which "
        f"{SHARE_OF_MEMORY:.0%} count; {hardware.flops / 1e12:,.3g} TFLOP/s used to "
        f"{100 * hardware.utilisation:.3g}%; {in_units(hardware.within, 'B/s')} within a machine, "
        f"{in_units(hardware.between, 'B/s')} between",
        f"arithmetic: {in_units(flops_per_token(asked, network), 'FLOP')} a token",
    ]
    if asked.config.algorithm.online:
        lines.append("completions count with their greatest length, rollout.max_new_tokens")
    return lines


def tables(asked: Asked, found: list[Forecast], hardware: Hardware) -> list[str]:
    """Return the tables: strategies, memory by part, exchanges by collective."""
    possible = [f for f in found if f.problem is None]
    good = fitting(found, hardware)
    width = max(len(f.layout.name) for f in found)
    lines = [
        "",
        f"{'strategy':<{width}}{'memory':>12}  {'':<11}{'peak in':<36}{'s/step':>9}{'tokens/s':>16}"
        f"{'waiting':>9}{'hours':>9}",
    ]
    for f in found:
        name = f"{f.layout.name:<{width}}"
        if f.problem is not None:
            lines.append(f"{name}  not possible: {f.problem}")
            continue
        fits = "fits" if f in good else "too large"
        hours = asked.num_steps * f.seconds / 3600
        lines.append(
            f"{name}{in_bytes(f.peak):>12}  {fits:<11}{f.counted.phase:<36}{f.seconds:>9,.3g}"
            f"{rate(asked.tokens_per_step / f.seconds):>16}{f.waiting / f.seconds:>9.0%}"
            f"{hours:>9,.3g}"
        )
    parts = dict.fromkeys(part for f in possible for part in f.counted.parts)
    lines += ["", "memory of a rank at its peak, by part:"]
    for part in parts:
        row = "".join(f"{in_bytes(f.counted.parts.get(part, 0)):>12}" for f in possible)
        lines.append(f"{part:<27}{row}")
    lines.append(f"{'':<27}" + "".join(f"{_short(f):>12}" for f in possible))
    lines += ["", "bytes that a rank sends in a step:"]
    for kind in COLLECTIVES:
        for apart in (False, True):
            sizes = [
                sum(b for x, b in f.traffic().items() if x.kind == kind and x.apart == apart)
                for f in possible
            ]
            if any(sizes):
                name = f"{kind} {'between' if apart else 'within'} machines"
                lines.append(
                    f"{name:<32}" + "".join(f"{in_units(size, 'B'):>12}" for size in sizes)
                )
    lines.append(f"{'':<32}" + "".join(f"{_short(f):>12}" for f in possible))
    return lines


def _short(found: Forecast) -> str:
    layout = found.layout
    split = [
        f"{letter}{n}" for letter, n in (("t", layout.tensor), ("s", layout.sequence)) if n > 1
    ]
    return ".".join([*split, layout.strategy])


def recommended(asked: Asked, found: list[Forecast], hardware: Hardware) -> tuple[Forecast, str]:
    """Return the strategy to take and why; raise ValueError if none fits, with what would help."""
    good = fitting(found, hardware)
    if not good:
        raise ValueError(nothing_fits(asked, found, hardware))
    plain = next((f for f in good if f.layout.name == "ddp"), None)
    best = good[0]
    if plain is not None and plain.seconds < MUCH_SLOWER * best.seconds:
        why = "there is one rank" if len(found) == 1 else "none is predicted to be faster"
        if best is not plain:
            why = (
                f"the {best.seconds:,.3g} s of {best.layout.name} against its "
                f"{plain.seconds:,.3g} count on exchanges that take place beside arithmetic"
            )
        return plain, f"it fits, and {why}"
    ddp = next((f for f in found if f.layout.name == "ddp" and f.problem is None), None)
    why = "the recipe asks for more than ddp"
    if ddp is not None:
        why = f"ddp needs {in_bytes(ddp.peak)} a rank and takes {ddp.seconds:,.3g} s a step"
    return best, (
        f"{why}, and of the {len(good)} that fit it is predicted to be the fastest, "
        f"{best.seconds:,.3g} s a step"
    )


def nothing_fits(asked: Asked, found: list[Forecast], hardware: Hardware) -> str:
    """Return by how much the smallest strategy is too large, and what would help."""
    possible = [f for f in found if f.problem is None]
    if not possible:
        return str(found[0].problem)
    least = min(possible, key=lambda f: f.peak)
    room = SHARE_OF_MEMORY * hardware.memory
    parts, model = least.counted.parts, asked.config.model
    large = max(parts, key=lambda part: parts[part])
    fixes = []
    movable = asked.config.distributed.offload == "none" and model.device != "cpu"
    if movable and parts.get("optimiser", 0) > least.peak / 10:
        fixes.append("distributed.offload=optimizer")
    if not model.gradient_checkpointing and parts.get("activations", 0) > least.peak / 10:
        fixes.append("model.gradient_checkpointing=true")
    longest = max(asked.lengths)
    if asked.config.trainer.token_budget > longest:
        fixes.append("a lower trainer.micro_batch_tokens")
    if not model.trains_adapter and model.scratch is None:
        fixes.append("model.adapter=lora")
    fixes.append("more ranks" if least.layout.strategy != "ddp" else "more GPUs")
    return (
        f"no strategy fits: the smallest, {least.layout.name}, needs {in_bytes(least.peak)} a "
        f"rank, {in_bytes(least.peak - room)} more than there are ({in_bytes(room)}), most of it "
        f"for {large} in {least.counted.phase}: try {', '.join(fixes)}"
    )


def servers(rates: Rates, lengths: list[int]) -> list[str]:
    """Return how many rollout servers keep the trainers busy."""
    lines = [
        f"rollout servers: {rates.completions:,} completions a step of "
        f"{sum(lengths) / len(lengths):,.0f} tokens, {rate(rates.tokens_per_second)} tokens/s a "
        f"server with {rates.slots} at once, {rates.step_seconds:,.3g} s a training step, weights "
        f"at most {rates.max_staleness} steps old"
    ]
    answer = servers_for(rates, lengths, BUSY)
    if answer is None:
        best = busy_share(rates, lengths, 1024)
        lines.append(
            f"  no number of servers keeps the trainers busy for {BUSY:.0%} of the time (1,024: "
            f"{best:.0%}): let weights be older (rollout.max_staleness)"
        )
        return lines
    count, share = answer
    tried = sorted({1, max(1, count // 2), max(1, count - 1), count, count * 2})
    said = ", ".join(f"{n}: {busy_share(rates, lengths, n):.0%}" for n in tried)
    lines.append(f"  {count} keep the trainers busy for {share:.0%} of the time ({said})")
    return lines
