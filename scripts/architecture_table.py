"""Write docs/architectures.md: what each of transformers' architectures does here, measured.

    python scripts/architecture_table.py

The models are tiny and random (tests/helpers/architectures.py). The script fails if the loss, the
gradients, the text or the scores of one are not transformers'.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

HEAD = """# Architectures

After reading this page you know which models train and sample here, and what runs slower.

Every row was measured by `python scripts/architecture_table.py` on a tiny random model of
transformers' class, and `tests/integration/test_architectures.py` holds it: log-probs and
gradients of packed rows, three of which share a prompt, against transformers' own, row by row;
greedy text against `generate`; a reward model's scores against the classifier that transformers
loads; a checkpoint that is read back bit for bit; DPO's first loss, ln 2; the sampler's log-probs
and the trainer's. **{count} of {count} architectures** are right in all of it.

| architecture | `model_type` | trains | samples | packed | reward model | tokens/s |
|---|---|---|---|---|---|---|
"""

TAIL = """
- **trains**: SFT, pre-training, preference methods and RL, all weights or LoRA. In state-space
  layers (Mamba), `all-linear` leaves out `out_proj` and `dt_proj`: their kernels read the weights
  past the adapter. A note says so.
- **samples**: *together*: completions share a cache, which they enter and leave at any time. *Own
  cache*: they share a batch in the cache that the model makes itself, and those that have finished
  stay until all have. Prompts are padded there or, if a state would count the padding, read in
  groups of equal length. *By `generate`*: transformers' `generate` runs the steps, of a model
  without a cache. **tokens/s** is the speed of 16 completions of the tiny model, by CPU time on one
  core: it shows what the ways cost, not what a real model does.
- **packed**: rows run end to end and completions share their prompt. If *no*, every sequence runs
  on its own in transformers' attention: right, slower, and printed before the run. *To n tokens*:
  the rotation of longer sequences depends on their length, so that a micro-batch with one of them
  is not packed (n is that of the tiny model).
- **reward model**: reward models and classifiers are saved as transformers' sequence classifier of
  the architecture. *Here only*: transformers has none, so only posttrain loads what is saved, and
  says so. *No*: refused before training.

## How it is decided

Nothing depends on a list of names. Before a model is trained, six short rows of it run through
transformers as it was loaded, one at a time, and then packed through posttrain. If the log-probs
are the same, up to ten times the rounding that was seen, the model is packed. If they are not,
sequences run one at a time; if that is not the same either, the model is refused. The sampler
compares the log-probs of six tokens with those of a forward pass before it samples anything. A
model whose log-probs change when tokens follow is refused: it is not causal. Windows and chunks of
more than 64 tokens are made 24 tokens long for these rows, in transformers' pass and in ours, so
that a row reaches beyond them.

Rotations that depend on the length (dynamic, longrope) change beyond a length. While sampling,
each row of a batch is rotated as it is alone: under longrope a completion that crosses the length
is read again, under dynamic rotation its earlier keys stay as they were, as in transformers. Its
tokens would be sampled under one rotation and trained under another: RL refuses prompts whose
completions could cross it. A loss that balances experts (`output_router_logits`) is not added; a
note says so.

## Other models

Encoder-decoders, classifiers as a start for text, and models of more than text are refused by name.
Of Llama 4 and Qwen3.5, transformers reads the text part itself. The text part of others, such as
Gemma 3 or Mistral 3, becomes a model of its own by this:

```python
import transformers

whole = transformers.AutoModelForImageTextToText.from_pretrained("whole")
config = whole.config.get_text_config(decoder=True)
text = transformers.AutoModelForCausalLM.from_config(config)
text.base_model.load_state_dict(whole.get_decoder().state_dict())
text.get_output_embeddings().load_state_dict(whole.get_output_embeddings().state_dict())
text.save_pretrained("text")
transformers.AutoTokenizer.from_pretrained("whole").save_pretrained("text")
```

It fails with transformers' message if the text part is no language model there (Qwen2.5-VL).

## Dropout

Forward passes without gradient and sampling never apply dropout. While training,
[`model.dropout`](reference/config.md) decides about the dropout, layer drop and router jitter in
the model's config and about `model.lora.dropout`. By default they apply, as in transformers, except
in preference methods and RL, which compare the policy's log-probs with those of a reference or of
the sampler: there DPO starts at ln 2 and the ratio at 1. What applies is printed before the run.

## Checkpoints

A checkpoint holds all that `state_dict()` does, persistent buffers included (DeepSeek-V3's
`e_score_correction_bias`). Before the first step, and in a dry run, the start model is saved into a
temporary folder and read back: every tensor, and every log-prob of the six rows, must be the same
bit for bit. Of models with more than 2 GiB of trained weights, all is written but the matrices, and
their names are compared. An adapter is read back by PEFT.
"""


def tokens_per_second(name: str) -> float:
    """Return the speed of 16 completions of 32 tokens, by CPU time."""
    import architectures

    from posttrain.rollout.native.sampler import NativeSampler
    from posttrain.rollout.sampler import SamplingParams

    sampler = NativeSampler(architectures.policy(name), 16)
    prompts, params = [[5 + i, 9, 4] for i in range(16)], SamplingParams(32, (), 0.0)
    sampler.generate(prompts[:1], params, [0])
    started = time.process_time()
    sampler.generate(prompts, params, [0] * 16)
    return 16 * 32 / (time.process_time() - started)


def main() -> None:
    """Measure every architecture and write the page."""
    import torch
    import transformers
    from architectures import ARCHITECTURES, verdict

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    lines = []
    for name in ARCHITECTURES:
        row = verdict(name)
        speed = f"{tokens_per_second(name):,.0f}"
        cells = (name, f"`{row.model_type}`", "yes", row.samples, row.packed, row.reward_model)
        lines.append(f"| {' | '.join((*cells, speed))} |")
        print(lines[-1])
    PAGE.write_text(HEAD.format(count=len(lines)) + "\n".join(lines) + "\n" + TAIL)


if __name__ == "__main__":
    main()
