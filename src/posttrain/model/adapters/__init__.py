"""Registry of adapters: what can be trained on a frozen model. Add a line for each kind."""

LORA = "posttrain.model.adapters.lora:ADAPTER"
PEFT = "posttrain.model.adapters.peft_kinds:ADAPTER"
REFT = "posttrain.model.adapters.reft:ADAPTER"

ADAPTERS = {
    "none": "posttrain.model.adapters.base:NONE",
    "lora": LORA,
    "rslora": LORA,
    "dora": LORA,
    "pissa": LORA,
    "olora": LORA,
    "loreft": REFT,
    "direft": REFT,
    "noreft": REFT,
    "consreft": REFT,
    "lobireft": REFT,
    "direft_orthogonal": REFT,
    "adamss": PEFT,
    "beft": PEFT,
    "boft": PEFT,
    "c3a": PEFT,
    "deft": PEFT,
    "delora": PEFT,
    "fourierft": PEFT,
    "glora": PEFT,
    "gralora": PEFT,
    "hira": PEFT,
    "hra": PEFT,
    "ia3": PEFT,
    "ln_tuning": PEFT,
    "loha": PEFT,
    "lokr": PEFT,
    "miss": PEFT,
    "oft": PEFT,
    "peanut": PEFT,
    "randlora": PEFT,
    "road": PEFT,
    "shira": PEFT,
    "supertuning": PEFT,
    "tinylora": PEFT,
    "trainable_tokens": PEFT,
    "unilora": PEFT,
    "vblora": PEFT,
    "vera": PEFT,
    "waveft": PEFT,
}

VIRTUAL_TOKENS = "it puts virtual tokens in front of the input, which packed rows do not have"
FACTORISED = (
    "it factorises the model's weights again at every loading, so that the same file is another "
    "adapter in another dtype"
)
REFUSED = {
    "adalora": "it changes its ranks during the run, by a loss and a schedule of its own",
    "adaption_prompt": "it replaces the attention, which packed rows need",
    "cartridge": VIRTUAL_TOKENS,
    "cpt": VIRTUAL_TOKENS,
    "frod": FACTORISED,
    "lily": "its router averages over all tokens of a batch, later ones and other rows' too",
    "multitask_prompt_tuning": VIRTUAL_TOKENS,
    "osf": "it trains the model's own weights, and projects their gradients in hooks",
    "p_tuning": VIRTUAL_TOKENS,
    "poly": "it needs a task's number with every row",
    "prefix_tuning": VIRTUAL_TOKENS,
    "prompt_tuning": VIRTUAL_TOKENS,
    "psoft": FACTORISED,
    "pvera": "it draws its update at random in training",
    "shadow": "it runs a second network beside the model, with a loss of its own",
    "xlora": "it is a router over several trained adapters",
}
"""PEFT's kinds that are not offered, and why."""

CALLED_OTHERWISE = {
    "full": "none",
    "lora+": "lora with lr_ratio: 16",
    "loraplus": "lora with lr_ratio: 16",
    "nodireft": "direft",
    "qlora": "lora with model.quantization: nf4",
    "reft": "loreft",
}
"""Names of other tools, and what they are here."""
