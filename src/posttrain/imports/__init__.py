"""Registry of frameworks whose configs are imported. To add one, write a module with a `Source`."""

SOURCES: dict[str, object] = {
    "llamafactory": "posttrain.imports.llamafactory:SOURCE",
    "axolotl": "posttrain.imports.axolotl:SOURCE",
    "trl": "posttrain.imports.trl:SOURCE",
    "torchtune": "posttrain.imports.torchtune:SOURCE",
    "open_instruct": "posttrain.imports.open_instruct:SOURCE",
    "verl": "posttrain.imports.verl:SOURCE",
    "fine_tuning": "posttrain.imports.fine_tuning:SOURCE",
    "preference_pipeline": "posttrain.imports.preference_pipeline:SOURCE",
    "verl_sft": "posttrain.imports.verl_sft:SOURCE",
    "experiments": "posttrain.imports.experiments:SOURCE",
    "from_scratch": "posttrain.imports.from_scratch:SOURCE",
}
