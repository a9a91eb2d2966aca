"""What a mode decides, and what the caller's numbers keep."""

import math

from apr_jax.train import TrainConfig

UNIFORM = math.log(151_936)


def _resolved(**changes):
    settings = dict(init="i", shards="s", val_shards="v", out="o", steps=2000)
    return TrainConfig(**(settings | changes)).resolved(UNIFORM)


def test_fine_tuning_starts_from_a_model_that_knows_its_language():
    config = _resolved()
    assert (config.lr, config.lr_min, config.warmup_steps) == (5e-5, 5e-7, 100)
    assert (config.target_val_loss, config.max_initial_val_loss) == (2.2, 4.0)


def test_from_scratch_nothing_is_asked_of_the_start_or_the_tokenizers_scale():
    config = _resolved(mode="from_scratch")
    assert (config.lr, config.warmup_steps) == (3e-4, 200)
    assert (config.target_val_loss, config.max_initial_val_loss) == (0, 0)
    assert config.max_first_val_loss == 2 * UNIFORM


def test_given_numbers_stand():
    config = _resolved(lr=1e-3, warmup_steps=0, target_val_loss=0.0, lr_min=0.0)
    assert (config.lr, config.lr_min, config.warmup_steps) == (1e-3, 0.0, 0)
    assert config.target_val_loss == 0.0


def test_a_short_run_warms_up_for_a_tenth():
    assert _resolved(steps=50).warmup_steps == 5
    assert _resolved(steps=1).warmup_steps == 0
