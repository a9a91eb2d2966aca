"""Checkpoints to resume a run from, kept by orbax: the whole state and what the run had found."""

import contextlib
import functools
import hashlib
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from apr_jax.files import WriteError
from apr_jax.train.config import TrainError
from apr_jax.train.step import TrainState

_KEEP = 2


class Checkpoints:
    """The checkpoints of one run folder. A save that is killed leaves the one before."""

    def __init__(self, folder: pathlib.Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEEP, create=True, enable_async_checkpointing=False
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, found: dict[str, Any]) -> None:
        """Save the state after `step` updates, and `found`: JSON that the report will need.

        Raises:
          WriteError: the disk is full, or refuses.
        """
        note = {"found": found, "state": _checksums(state)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            found=ocp.args.JsonSave(note | {"sha256": _digest(note)}),
        )
        try:
            with _told_once():
                self._manager.save(step, args=args)
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore raises all three
            # The system's reason stands last, after long names of files.
            reason = str(error).splitlines()[0].split(" [os_error_code")[0].split(": ")[-1][:200]
            raise WriteError(
                f"{self._folder}: the checkpoint of step {step} cannot be written ({reason}); make "
                "room and give the same command again"
            ) from error

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and findings saved at `step`, placed on devices as `like` is.

        Raises:
          TrainError: the checkpoint is damaged, if only by a bit.
        """
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted), found=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=args)
        except jax.errors.JaxRuntimeError:
            raise  # too little memory, of which the checkpoint knows nothing
        except Exception as error:  # orbax raises that too, besides the errors of JSON and files
            raise self._damaged(step) from error
        state, note = restored["state"], restored["found"]
        if (
            not isinstance(note, dict)
            or note.pop("sha256", None) != _digest(note)
            or note["state"] != _checksums(state)
        ):
            raise self._damaged(step)
        return state, note["found"]

    def close(self) -> None:
        """Wait for writes and release the folder."""
        self._manager.close()

    def _damaged(self, step: int) -> TrainError:
        return TrainError(
            f"{self._folder / str(step)}: the checkpoint is damaged or of an earlier version; "
            "remove that folder and give the same command again, to go on from the one before or "
            "from the start"
        )


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Let the caller alone tell what is raised: threads and futures of a failed save, some of them
    long after it, print it hundreds of times."""
    hook, verbosity = sys.unraisablehook, absl.logging.get_verbosity()
    sys.unraisablehook = lambda _: None
    absl.logging.set_verbosity(absl.logging.FATAL)
    later = hook
    try:
        yield
    except BaseException:
        logging.getLogger("asyncio").disabled = True
        later = functools.partial(_unless_closed, hook)
        raise
    finally:
        sys.unraisablehook = later
        absl.logging.set_verbosity(verbosity)


def _unless_closed(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Pass on what no one can raise, but for threads that find the loop of a failed save closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _digest(note: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


def _checksums(state: TrainState) -> list[int]:
    """One of each leaf, taken where it lies: what is stored of it has none by itself."""
    return [int(sum_) for sum_ in jax.device_get([_checksum(x) for x in jax.tree.leaves(state)])]


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    """Sum of the leaf's 32-bit words times odd numbers, modulo 2^32: no changed bit leaves it."""
    words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)
