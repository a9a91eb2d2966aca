"""The step against arithmetic done by hand, and against itself cut into pieces."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apr_jax.model.params import init_params, to_named
from apr_jax.model.qwen2 import Qwen2
from apr_jax.train.config import TrainConfig
from apr_jax.train.optimizer import make_optimizer
from apr_jax.train.step import TrainState, eval_step, train_step
from tests.train.fixtures import TINY as CONFIG

MODEL = Qwen2(CONFIG)
SETTINGS = TrainConfig(
    init="", shards="", val_shards="", out="", steps=20, lr=1e-2, warmup_steps=4, clip=0.5
).resolved(math.log(CONFIG.vocab_size))


def _params():
    """Random everywhere: zero biases and unit norms would hide what a step does to them."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: (leaf + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32),
        init_params(CONFIG, seed=0),
    )


def _batch(sequences=4, length=16, seed=0):
    """A batch whose sequences have very different numbers of targets."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CONFIG.vocab_size, (sequences, length + 1), dtype=np.int32)
    lengths = np.linspace(1, length, sequences).astype(int)
    weights = (np.arange(length)[None] < lengths[:, None]).astype(np.float32)
    return {"ids_BT": tokens[:, :-1], "targets_BT": tokens[:, 1:], "weights_BT": weights}


def _cut(batch, parts):
    return {name: a.reshape(parts, -1, *a.shape[1:]) for name, a in batch.items()}


def _state(settings=SETTINGS):
    params = _params()
    return TrainState(jnp.int32(0), params, make_optimizer(settings).init(params))


@functools.cache
def _step(settings=SETTINGS):
    return jax.jit(functools.partial(train_step, model=MODEL, optimizer=make_optimizer(settings)))


def test_loss_is_the_mean_over_targets():
    params, batch = _params(), _batch()
    logits = np.asarray(MODEL.apply({"params": params}, batch["ids_BT"]), np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    nats = log_z - np.take_along_axis(logits, batch["targets_BT"][..., None], -1)[..., 0]
    weights = batch["weights_BT"]
    total, count = eval_step(params, batch, model=MODEL)
    assert count == weights.sum()
    np.testing.assert_allclose(total, (nats * weights).sum(), rtol=1e-5)
    _, metrics = _step()(_state(), _cut(batch, 1))
    np.testing.assert_allclose(metrics["loss"], (nats * weights).sum() / weights.sum(), rtol=1e-5)
    assert metrics["tokens"] == weights.sum()


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_one_batch_with_uneven_tokens(parts):
    whole, whole_metrics = _step()(_state(), _cut(_batch(), 1))
    cut, cut_metrics = _step()(_state(), _cut(_batch(), parts))
    for name in ("loss", "grad_norm", "lr", "tokens"):
        np.testing.assert_allclose(cut_metrics[name], whole_metrics[name], rtol=1e-5)
    # The first moment is a tenth of the clipped gradient. (Updates are its sign where it is
    # nothing but rounding, so parameters cannot be compared this closely.)
    moments = (optax.tree.get(state.opt_state, "mu") for state in (cut, whole))
    for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_first_update_is_adamw_of_the_clipped_gradient():
    params, batch = _params(), _batch()

    def mean_loss(params):
        total, _ = MODEL.apply({"params": params}, **batch, method="cross_entropy")
        return total / batch["weights_BT"].sum()

    grads = {k: np.asarray(v, np.float64) for k, v in to_named(jax.grad(mean_loss)(params)).items()}
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    assert norm > SETTINGS.clip, "the test must see the clip at work"
    rate = SETTINGS.lr / SETTINGS.warmup_steps
    state, metrics = _step()(_state(), _cut(batch, 1))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["lr"], rate, rtol=1e-6)
    updated = to_named(state.params)
    for name, before in to_named(params).items():
        g = grads[name] * SETTINGS.clip / norm
        # After one update both moments are the gradient itself, once bias-corrected.
        step = g / (np.abs(g) + SETTINGS.adam_eps)
        decay = SETTINGS.weight_decay if before.ndim >= 2 else 0.0
        expected = before - rate * (step + decay * before)
        real = np.abs(g) > 1e-4 * np.abs(g).max()  # the rest is the sign of rounding errors
        assert real.mean() > 0.5
        np.testing.assert_allclose(updated[name][real], expected[real], atol=2e-6, err_msg=name)


def test_z_loss_is_minimised_and_not_logged():
    params, batch, z_loss = _params(), _batch(), 0.3

    def objective(params):
        logits_BTV = MODEL.apply({"params": params}, batch["ids_BT"])
        log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        nats_BT = (
            log_z_BT - jnp.take_along_axis(logits_BTV, batch["targets_BT"][..., None], 2)[..., 0]
        )
        count = batch["weights_BT"].sum()
        return jnp.sum(batch["weights_BT"] * (nats_BT + z_loss * log_z_BT**2)) / count

    step = functools.partial(train_step, model=MODEL, optimizer=make_optimizer(SETTINGS))
    _, plain = step(_state(), _cut(batch, 1))
    _, found = step(_state(), _cut(batch, 1), z_loss=z_loss)
    np.testing.assert_array_equal(found["loss"], plain["loss"])
    norm = optax.tree.norm(jax.grad(objective)(params))
    np.testing.assert_allclose(found["grad_norm"], norm, rtol=1e-4)
    assert abs(norm - plain["grad_norm"]) > 0.01 * norm


def test_every_parameter_learns_and_the_head_stays_tied():
    state = _state()
    for seed in range(3):
        state, _ = _step()(state, _cut(_batch(seed=seed), 1))
    before, after = to_named(_params()), to_named(state.params)
    assert list(before) == list(after)
    assert "lm_head.weight" not in after
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert still == []


def test_recorded_rate_follows_the_schedule_to_its_end():
    traced = []

    def counted(state, batch):
        traced.append(1)
        return train_step(state, batch, model=MODEL, optimizer=make_optimizer(SETTINGS))

    state, step, rates = jax.device_put(_state()), jax.jit(counted), []
    for seed in range(SETTINGS.steps):
        state, metrics = step(state, _cut(_batch(seed=seed), 1))
        rates.append(float(metrics["lr"]))
    warm = SETTINGS.warmup_steps
    np.testing.assert_allclose(rates[:warm], SETTINGS.lr * np.arange(1, warm + 1) / warm, rtol=1e-5)
    assert all(a > b for a, b in zip(rates[warm - 1 :], rates[warm:], strict=False))
    np.testing.assert_allclose(rates[-1], SETTINGS.lr_min, rtol=1e-5)
    assert len(traced) == 1, "the step must be traced once"


def test_leaf_norms_name_the_leaf_that_is_not_finite():
    state = _state()
    named = to_named(state.params)
    name = "model.layers.1.mlp.up_proj.weight"
    named[name][0, 0] = np.inf
    _, metrics = _step()(state, _cut(_batch(), 1))
    assert not np.isfinite(np.asarray(metrics["leaf_norms"])[list(named).index(name)])
    assert not np.isfinite(metrics["grad_norm"])


def test_learns_what_is_predictable():
    """Thirty updates on one batch bring its loss far down: gradients point the right way."""
    settings = dataclasses.replace(SETTINGS, steps=31, clip=1.0)
    state, step, batch = _state(settings), _step(settings), _cut(_batch(), 1)
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.2 * losses[0]
