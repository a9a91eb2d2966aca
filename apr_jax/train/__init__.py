"""Training: batches and parameters in; better parameters, records and a report out."""

from apr_jax.train.config import TrainConfig, TrainError
from apr_jax.train.loop import train
