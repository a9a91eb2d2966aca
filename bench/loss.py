"""Speed and memory of the loss of a training step, beside the loss that holds all logits.

python -m bench.loss
Both losses run turn by turn in one process; prints the rows of the table in bench/results.md.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from bench.shapes import QWEN2_5_0_5B
from experiments import program
from kernels.loss import IMPLEMENTATIONS, linear_cross_entropy
from kernels.loss.reference import linear_cross_entropy_whole

_TOKENS = flags.DEFINE_integer("tokens", 16_384, "Tokens of a step.")
_VOCAB = flags.DEFINE_integer("vocab", QWEN2_5_0_5B.vocab_size, "Rows of the head.")
_MODEL = flags.DEFINE_integer("model", QWEN2_5_0_5B.hidden_size, "Size of a row.")
_TURNS = flags.DEFINE_integer("turns", 15, "Turns that each loss takes; the median counts.")
_IMPL = flags.DEFINE_multi_enum(
    "impl", list(IMPLEMENTATIONS), IMPLEMENTATIONS, "Which of ours; repeat the flag for several."
)
_CHECKED = flags.DEFINE_integer("checked", 2048, "Tokens on which the results are compared.")

_Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def main() -> int:
    """Time every loss with and without gradients and print its rows."""
    losses: dict[str, _Loss] = {"all logits": _all_logits}
    for impl in _IMPL.value:
        losses[f"ours, {impl}"] = functools.partial(_ours, impl=impl)
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}; bfloat16, "
        f"{_TOKENS.value:,} tokens x {_VOCAB.value:,} rows of {_MODEL.value}"
    )
    print(
        "| loss | with gradients | of all logits' | temporary memory | without | of all logits' "
        "| error of loss, gradients | with likely targets |"
    )
    print("|---|---|---|---|---|---|---|---|")
    arrays = _inputs(_TOKENS.value)
    steps = {
        name: _compile(jax.value_and_grad(loss, (0, 1)), arrays) for name, loss in losses.items()
    }
    evals = {name: _compile(loss, arrays) for name, loss in losses.items()}
    step_ms, eval_ms = _times(steps, arrays), _times(evals, arrays)
    for name, loss in losses.items():
        memory = steps[name].memory_analysis().temp_size_in_bytes
        print(
            f"| {name} | {step_ms[name]:.1f} ms | {step_ms[name] / step_ms['all logits']:.2f} "
            f"| {memory / 1e9:.2f} GB | {eval_ms[name]:.1f} ms "
            f"| {eval_ms[name] / eval_ms['all logits']:.2f} "
            f"| {_errors(loss, _inputs)} | {_errors(loss, _likely_inputs)} |"
        )
    return 0


def _ours(x_TD: jax.Array, weight_VD: jax.Array, targets_T: jax.Array, *, impl: str) -> jax.Array:
    return linear_cross_entropy(x_TD[None], weight_VD, targets_T[None], impl=impl)[0]


def _all_logits(x_TD: jax.Array, weight_VD: jax.Array, targets_T: jax.Array) -> jax.Array:
    """The fastest that holds all logits: their gradient in bfloat16, the target by a mask."""
    logits_TV = _scores(x_TD, weight_VD.astype(x_TD.dtype))
    is_target_TV = targets_T[:, None] == jnp.arange(logits_TV.shape[1])[None]
    target_T = jnp.sum(jnp.where(is_target_TV, logits_TV, 0.0), axis=-1)
    return jnp.sum(jax.nn.logsumexp(logits_TV, axis=-1) - target_T)


@jax.custom_vjp
def _scores(x_TD: jax.Array, weight_VD: jax.Array) -> jax.Array:
    return jnp.einsum("TD,VD->TV", x_TD, weight_VD, preferred_element_type=jnp.float32)


def _scores_forward(x_TD: jax.Array, weight_VD: jax.Array) -> tuple[jax.Array, Any]:
    return _scores(x_TD, weight_VD), (x_TD, weight_VD)


def _scores_backward(saved: Any, grad_TV: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_TD, weight_VD = saved
    grad_TV = grad_TV.astype(x_TD.dtype)
    return grad_TV @ weight_VD, jnp.einsum("TV,TD->VD", grad_TV, x_TD)


_scores.defvjp(_scores_forward, _scores_backward)


def _inputs(tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits that spread as a model's do: the head's rows are of length about 1.5."""
    x_key, weight_key, target_key = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(x_key, (tokens, _MODEL.value), jnp.bfloat16),
        0.05 * jax.random.normal(weight_key, (_VOCAB.value, _MODEL.value)),
        jax.random.randint(target_key, (tokens,), 0, _VOCAB.value),
    )


def _likely_inputs(tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same, but with a target's logit some 5 above the log-normaliser of all others, which is
    nats of about 0.01: what a model has learnt by heart."""
    x_TD, weight_VD, targets_T = _inputs(tokens)
    target_TD = weight_VD[targets_T]
    length_T = jnp.linalg.norm(target_TD, axis=-1)
    # The log of the mean of exponentials of normally distributed logits, of that deviation.
    logit_T = 5 + jnp.log(_VOCAB.value) + length_T**2 / 2
    x_TD += ((logit_T / length_T**2)[:, None] * target_TD).astype(x_TD.dtype)
    return x_TD, weight_VD, targets_T


def _compile(function: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> Any:
    return jax.jit(function).lower(*arrays).compile()


def _times(functions: dict[str, Any], arrays: tuple[jax.Array, ...]) -> dict[str, float]:
    """Median milliseconds of each, turn by turn, after two turns that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(2 + _TURNS.value):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(found[2:]) for name, found in seconds.items()}


def _errors(loss: _Loss, inputs: Callable[[int], tuple[jax.Array, ...]]) -> str:
    """Relative errors, by the Euclidean norm, against the same in float32 throughout."""
    x_TD, weight_VD, targets_T = inputs(min(_CHECKED.value, _TOKENS.value))
    rounded_VD = weight_VD.astype(x_TD.dtype).astype(jnp.float32)

    def exact(x_TD: jax.Array, weight_VD: jax.Array, targets_T: jax.Array) -> jax.Array:
        ones_BT = jnp.ones((1, len(targets_T)))
        return linear_cross_entropy_whole(
            x_TD[None], weight_VD, targets_T[None], ones_BT, z_loss=0.0
        )[0]

    def run(loss: _Loss, *arrays: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays))

    wants = run(exact, x_TD.astype(jnp.float32), rounded_VD, targets_T)
    gots = run(loss, x_TD, weight_VD, targets_T)
    return ", ".join(
        f"{jnp.linalg.norm((got - want).ravel()) / jnp.linalg.norm(want.ravel()):.1e}"
        for got, want in zip(gots, wants, strict=True)
    )


if __name__ == "__main__":
    program.run(main)
