"""Text in, token ids, shards and batches out. Needs no JAX."""

from apr_jax.text.loading import load_tokenizer
from apr_jax.text.tokenizer import Tokenizer
