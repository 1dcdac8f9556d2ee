"""Post-training of language models: readable, offline, exact."""

from posttrain.common.environment import make_products_reproducible

make_products_reproducible()
