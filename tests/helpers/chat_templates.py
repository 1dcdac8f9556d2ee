"""Chat templates in the style of model families, written for the tests, and their tokenizers."""

import json
from functools import cache
from typing import Any

from posttrain.model.scratch import train_tokenizer

TEXTS = [
    "Tom has 12 apples and buys 30 more. The answer is 42.",
    "user assistant system tool call",
    "One\n\nTwo\n\nThree\n\n",
]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot|>", "<|return|>", "<|call|>", "<s>", "</s>"]
GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    + GENERATE
)
# a thinking family: reasoning of turns before the last question is dropped, a last turn without
# any gets an empty block, tools and calls are written as JSON
THINKING = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% set text = m.content or '' %}{% set why = m.reasoning_content or '' %}"
    "{% if '</think>' in text %}"
    "{% set why = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or why) %}"
    "<think>\n{{ why }}\n</think>\n\n{% endif %}{{ text }}"
    "{% for c in m.tool_calls or [] %}\n{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + GENERATE
)
# the whole text is closed by EOS
CLOSED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# channels: the last turn ends with another token than earlier ones, whose analysis is dropped
CHANNELS = (
    "<|im_start|>system\nToday: {{ strftime_now('%Y-%m-%d') }}<|im_end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|im_start|>assistant analysis {{ m.thinking }}<|im_end|>"
    "{% endif %}<|im_start|>assistant final {{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|im_end|>{% endif %}"
    "{% else %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
# the generation prompt opens the reasoning, and answers are rendered without it
OPENS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[user]{{ m.content }}"
    "{% elif m.role == 'assistant' %}[assistant]{{ m.content.split('</think>')[-1] }}</s>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
# the system text goes into the last user turn; system first, roles alternate
INST = (
    "{% set chat = messages %}{% if messages[0].role == 'system' %}"
    "{% set sys = messages[0].content %}{% set chat = messages[1:] %}{% endif %}{{ bos_token }}"
    "{% for m in chat %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {% if loop.last and sys is defined %}{{ sys }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
# a header template with a date, whose content is trimmed and whose tool turns are of role ipython
HEADERS = (
    "{{ bos_token }}{% if not date_string is defined %}"
    '{% set date_string = strftime_now("%d %b %Y") %}{% endif %}'
    "<|im_start|>system\n\nToday Date: {{ date_string }}\n<|eot|>"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
# roles have other names, and content is in parts only
PARTS = (
    "{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for p in m.content %}{{ p.text | trim }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
EITHER = PARTS.replace(
    "{% for p in m.content %}",
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for p in m.content %}",
).replace("{% endfor %}<|im_end|>", "{% endfor %}{% endif %}<|im_end|>")
TEMPLATES = {
    "chatml": CHATML,
    "thinking": THINKING,
    "closed": CLOSED,
    "channels": CHANNELS,
    "opens": OPENS,
    "inst": INST,
    "headers": HEADERS,
    "parts": PARTS,
    "either": EITHER,
}
# the generation prompt ends with an empty block that answers are written without
BLOCK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
# an answer is closed before its turn is
TWICE = CHATML.replace("<|im_end|>\n{% endfor %}", "<|im_end|></s>\n{% endfor %}")
OTHERS = {"block": BLOCK, "twice": TWICE, "spaces": CLOSED}
"""Families with another tokenizer ("spaces" begins every text with one) or generation prompt."""
EOS = {
    "twice": "</s>",
    "spaces": "</s>",
    "closed": "</s>",
    "channels": "<|return|>",
    "opens": "</s>",
    "inst": "</s>",
}


@cache
def _bpe() -> str:
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_str(train_tokenizer(TEXTS, 500, 4096).backend_tokenizer.to_str())
    bpe.add_special_tokens(SPECIAL)
    return str(bpe.to_str())


@cache
def _metaspace() -> str:
    """A tokenizer of SentencePiece's kind, with bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    marks = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=marks, show_progress=False)
    bpe.train_from_iterator(TEXTS[:2], trainer)  # no joined line ends
    spec = json.loads(bpe.to_str())
    spec["added_tokens"] = spec["added_tokens"][: 1 + len(SPECIAL)]  # the bytes are no marks
    return json.dumps(spec)


def tokenizer_with(template: Any, eos: str = "<|im_end|>", metaspace: bool = False) -> Any:
    """Return a tokenizer with a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_metaspace() if metaspace else _bpe()),
        bos_token="<s>",
        eos_token=eos,
        pad_token=eos,
    )
    tokenizer.chat_template = template
    return tokenizer


@cache
def family(name: str) -> Any:
    """Return the tokenizer of a family."""
    template = (TEMPLATES | OTHERS)[name]
    return tokenizer_with(template, EOS.get(name, "<|im_end|>"), name == "spaces")
