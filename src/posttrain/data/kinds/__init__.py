"""Registry of row kinds. To add one, write a module here with a `KIND`; list it below."""

KINDS: dict[str, object] = {
    "text": "posttrain.data.kinds.text:KIND",
    "completion": "posttrain.data.kinds.completion:KIND",
    "prompt": "posttrain.data.kinds.prompt:KIND",
    "pair": "posttrain.data.kinds.pair:KIND",
    "unpaired": "posttrain.data.kinds.unpaired:KIND",
    "steps": "posttrain.data.kinds.steps:KIND",
    "labelled": "posttrain.data.kinds.labelled:KIND",
}
