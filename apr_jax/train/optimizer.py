"""AdamW with warm-up and cosine decay, and where to read the rate that was really used."""

import jax
import optax

from apr_jax.train.config import TrainConfig


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """The rate by updates already made: the first is lr / warmup_steps, the last is lr_min.

    Of a config that is `resolved`.
    """
    assert config.lr is not None and config.warmup_steps is not None and config.lr_min is not None
    curve = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=config.lr_min,
    )
    return lambda count: curve(count + 1)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW, whose rate stands in its state."""
    adamw = optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
        learning_rate=learning_rate(config),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        mask=_matrices,
    )
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(clip, adamw)


def used_learning_rate(opt_state: optax.OptState) -> jax.Array:
    """The rate of the update that produced this state."""
    return opt_state[1].hyperparams["learning_rate"]


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
