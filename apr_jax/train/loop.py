"""A training run from its settings to its report."""

import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from apr_jax.files import finite, write_json
from apr_jax.lock import locked
from apr_jax.model import load_model
from apr_jax.model.params import to_name, to_named
from apr_jax.progress import Progress
from apr_jax.text.batches import document_overlap
from apr_jax.train import gates
from apr_jax.train.checkpoint import Checkpoints
from apr_jax.train.clock import Clock
from apr_jax.train.config import TrainConfig, TrainError
from apr_jax.train.devices import memory_explained, peak_memory_bytes, utilisation, versions
from apr_jax.train.evaluate import Evaluation, Evaluator
from apr_jax.train.optimizer import make_optimizer
from apr_jax.train.plot import plot_losses
from apr_jax.train.prepare import CHECKPOINTS, Setup, prepare
from apr_jax.train.records import Records, throughput
from apr_jax.train.save import save_model
from apr_jax.train.step import TrainState, train_step

RECORDS, MODEL, PLOT = "records.jsonl", "model.apr", "loss.png"


class StopRun(Exception):
    """The run ends here: with which status, and why."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


def train(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune `config.init` on `config.shards` and report what happened.

    Writes into `config.out`: the settings, a JSONL of every step and evaluation, checkpoints to
    resume from, the loss curve and, unless the run was refused or aborted, `model.apr`. A killed
    run that is started again goes on from its last checkpoint and ends with the same parameters;
    on GPUs up to last bits, because XLA fixes the order in which tokens are added to a row that
    they share only with XLA_FLAGS=--xla_gpu_deterministic_ops=true.

    Returns:
      The report. Its `status` is OK (every gate passed), MISSED (finished, but a gate did not
      pass), ABORTED (stopped in the middle) or REFUSED (stopped before the first step).

    Raises:
      UserError: settings, data, model file or devices do not fit; another run is in that folder.
    """
    with (
        locked(config.out),
        memory_explained(
            f"lower batch_size ({config.batch_size}) or raise accumulate ({config.accumulate}); "
            "remat saves more"
        ),
    ):
        setup, params = prepare(config)
        run = _Run(setup, params)
        del params  # the state has a copy of its own
        try:
            run.start()
            run.check_start()
            run.train()
            run.deliver()
            status, why = run.outcome()
        except StopRun as stop:
            status, why = stop.status, str(stop)
        finally:
            run.close()
    report = run.report(status, why)
    plot_losses(run.out / RECORDS, run.out / PLOT, report["uniform_loss"])
    write_json(run.out / "report.json", report)
    return report


class _Run:
    """A run's state, compiled steps and findings."""

    def __init__(self, setup: Setup, params: Any) -> None:
        self.setup, self.config = setup, setup.config
        self.out = pathlib.Path(self.config.out)
        optimizer = make_optimizer(self.config)
        self.leaf_names = [
            to_name(tuple(key.key for key in path))
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        ]
        self.state = setup.parallel.replicate(
            TrainState(jnp.int32(0), params, optimizer.init(params))
        )
        self.run_step = setup.parallel.compile(
            functools.partial(
                train_step,
                model=setup.model,
                optimizer=optimizer,
                z_loss=self.config.z_loss,
            ),
            donate=True,
        )
        self.evaluate = Evaluator(setup.model, setup.val_shards, setup.val_batches, setup.parallel)
        self.checkpoints = Checkpoints(self.out / CHECKPOINTS)
        self.step = self.checkpoints.latest_step() or 0
        # Records of steps after the checkpoint are made again; without one, all are.
        self.records = Records(self.out / RECORDS, keep_steps=self.step or -1)
        self.clock = Clock()
        self.evaluations: dict[int, Evaluation] = {}
        self.shared_documents: int | None = None
        self.gates: dict[str, gates.Gate] = {}
        self.not_asked: list[dict[str, str]] = []
        self.not_finite = 0
        self.delivered: str | None = None

    def start(self) -> None:
        """Take up the newest checkpoint, or measure where the model stands before any step."""
        self._announce()
        if not self.step:
            self._evaluate()
            return
        self.state, found = self.checkpoints.restore(self.step, self.state)
        self.evaluations = {int(k): Evaluation(**v) for k, v in found["evaluations"].items()}
        self.shared_documents = found["shared_documents"]
        for step in sorted(self.evaluations)[1:]:
            self._check_divergence(step)

    def check_start(self) -> None:
        """Ask what can be asked before the first step.

        Raises:
          StopRun: the data leak, or the model starts worse than a sound one can.
        """
        if self.setup.tokenizer is not None:
            self._skip("TOKENIZER", self.setup.tokenizer)
        self._check_held_out()
        initial, cap = self.evaluations[0].loss, self.config.max_initial_val_loss
        warning = gates.likely_cause(initial, self.setup.uniform_loss)
        if warning is not None and self.config.mode == "finetune":
            print(f"warning: before the first step, {warning}", flush=True)
        if not cap:
            self._skip("INIT-VAL-LOSS", "max_initial_val_loss is 0")
        elif not self._ask(gates.initial_loss(initial, cap)):
            why = warning or f"held-out loss is {initial:.3f} nats"
            raise StopRun("REFUSED", f"{why}; the cap is {cap:g}; crosscheck says what is wrong")

    def train(self) -> None:
        """Take the steps that are left.

        Raises:
          StopRun: a loss or gradient is not finite, or the held-out loss diverges.
        """
        config, parallel, running = self.config, self.setup.parallel, None
        with Progress("training", config.steps, "steps", initial=self.step) as bar:
            for step in range(self.step + 1, config.steps + 1):
                batch = parallel.split(self.setup.batches.batch(step - 1), axis=1)
                self.clock.start()
                self.state, metrics = self.run_step(self.state, batch)
                self.clock.watch(metrics["loss"])
                # The step before is waited for only now, so that the device is never idle.
                if running is not None:
                    self._account(*running, bar)
                running = (step, metrics)
                evaluate = step == config.steps or step % config.eval_every == 0
                save = step == config.steps or step % config.save_every == 0
                if evaluate or save:
                    self._account(*running, bar)
                    running = None
                    self.clock.pause()
                if evaluate:
                    self._evaluate()
                    self._check_divergence(step)
                if save:
                    self._save()
        self._ask(gates.all_finite(self.not_finite))

    def deliver(self) -> None:
        """Write the model file, load it again as a user would, and ask the last questions."""
        config, final, initial = self.config, self._last, self.evaluations[0]
        path = self.out / MODEL
        params, self.state = self.state.params, None  # the moments make room for the reload
        save_model(path, to_named(params), config)
        del params
        self.delivered = MODEL
        model, params = load_model(path, **self.setup.options)
        if model != self.setup.model:
            raise TrainError(f"{path}: reads back as {model}, was {self.setup.model}")
        reloaded = self.evaluate(self.setup.parallel.replicate(params))
        self._ask(gates.reload(reloaded.loss, final.loss))
        self._ask(gates.improved(final.loss, initial.loss))
        self._ask(gates.below_uniform(final.loss, self.setup.uniform_loss))
        if config.target_val_loss:
            self._ask(gates.target(final.loss, config.target_val_loss))
        else:
            self._skip("GATE-TRAIN-003", "target_val_loss is 0")
        if config.min_val_loss:
            self._ask(gates.floor(final.loss, config.min_val_loss))
        else:
            self._skip("VAL-LOSS-FLOOR", "min_val_loss is 0")

    def outcome(self) -> tuple[str, str]:
        """The status of a run that reached its end, and the gates that did not pass."""
        missed = [gate for gate in self.gates.values() if not gate.passed]
        if not missed:
            return "OK", "every gate passed"
        return "MISSED", "; ".join(
            f"{gate.id}: {gate.says} is {gate.value}, threshold {gate.threshold}" for gate in missed
        )

    def report(self, status: str, why: str) -> dict[str, Any]:
        """Everything that the run found, for report.json."""
        setup, final, initial = self.setup, self._last, self.evaluations[0]
        rate, first_step_seconds = throughput(self.out / RECORDS)
        return {
            "status": status,
            "verdict": why,
            "val_loss": finite(final.loss),
            "val_loss_bits_per_byte": final.bits_per_byte,
            "initial_val_loss": finite(initial.loss),
            "initial_val_loss_bits_per_byte": initial.bits_per_byte,
            "best_val_loss": finite(min(e.loss for e in self.evaluations.values())),
            "uniform_loss": setup.uniform_loss,
            "val_tokens": final.tokens,
            "steps": self.step,
            "tokens_per_second": rate,
            "model_flops_utilisation": rate and self._utilisation(rate),
            "first_step_seconds": first_step_seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "gates": [gate.to_json() for gate in self.gates.values()],
            "gates_not_asked": self.not_asked,
            "parameters": setup.model.config.num_parameters(),
            "train_tokens": setup.train_shards.num_tokens,
            "epochs": setup.batches.epochs,
            "compute_dtype": setup.options["compute_dtype"].name,
            "attention": setup.options["attention_impl"],
            "loss_impl": setup.options["loss_impl"],
            "config": self.config.to_json(),
            "versions": versions(),
            "model": self.delivered,
        }

    def close(self) -> None:
        """Release the files, and wait for what the devices still do."""
        self.clock.close()
        self.records.close()
        self.checkpoints.close()

    @property
    def _last(self) -> Evaluation:
        return self.evaluations[max(self.evaluations)]

    def _account(self, step: int, metrics: dict[str, jax.Array], bar: Progress) -> None:
        """Wait for a step's metrics, refuse numbers that are none, write them down."""
        loss, grad_norm, lr, tokens = (
            float(metrics[name]) for name in ("loss", "grad_norm", "lr", "tokens")
        )
        seconds, compiled = self.clock.finish()
        self.step = step
        self.not_finite += sum(not math.isfinite(value) for value in (loss, grad_norm))
        if self.not_finite:
            self._ask(gates.all_finite(self.not_finite))
            raise StopRun("ABORTED", f"step {step}: {self._culprit(loss, metrics)} is not finite")
        rate = tokens / seconds
        self.records.add(
            "step",
            step,
            train_loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            tokens=int(tokens),
            tokens_per_sec=rate,
            wall_ms=seconds * 1e3,
            compiled=compiled,
        )
        use = self._utilisation(rate)
        bar.update(
            1,
            f"loss {loss:.3f}, held out {self._last.loss:.3f}, lr {lr:.2e}, norm {grad_norm:.2f}, "
            f"{rate:,.0f} tokens/s" + (f", MFU {use:.2f}" if use is not None else ""),
        )

    def _culprit(self, loss: float, metrics: dict[str, jax.Array]) -> str:
        norms = jax.device_get(metrics["leaf_norms"])
        bad = [n for n, norm in zip(self.leaf_names, norms, strict=True) if not math.isfinite(norm)]
        leaves = f"the gradient of {', '.join(bad[:3])} ({len(bad)} of {len(norms)} parameters)"
        return leaves if bad else f"the loss ({loss})"

    def _evaluate(self) -> None:
        found = self.evaluate(self.state.params)
        self.evaluations[self.step] = found
        self.records.add(
            "eval",
            self.step,
            val_loss=finite(found.loss),
            val_loss_bits_per_byte=found.bits_per_byte,
            val_tokens=found.tokens,
        )

    def _save(self) -> None:
        found = {
            "evaluations": {str(k): v.to_json() for k, v in self.evaluations.items()},
            "shared_documents": self.shared_documents,
        }
        self.checkpoints.save(self.step, self.state, found)

    def _check_divergence(self, step: int) -> None:
        steps = [s for s in sorted(self.evaluations) if s <= step]
        loss, before = (self.evaluations[s].loss for s in (steps[-1], steps[-2]))
        gate = gates.no_divergence(loss, before)
        if len(steps) == 2 and self.config.max_first_val_loss:
            gate = gates.first_loss(loss, self.config.max_first_val_loss)
        if not self._ask(gate):
            raise StopRun(
                "ABORTED",
                f"divergence at step {step}: held-out loss {loss:.3f}, before {before:.3f}, "
                f"allowed {gate.threshold}",
            )

    def _check_held_out(self) -> None:
        train_shards, val_shards = self.setup.train_shards, self.setup.val_shards
        if train_shards.eos_id is None or val_shards.eos_id is None:
            self._skip("HELD-OUT", "the shards do not say where documents end")
            if shared := sorted(train_shards.hashes() & val_shards.hashes()):
                raise StopRun(
                    "REFUSED",
                    f"{len(shared)} shards of {val_shards.folder} are in {train_shards.folder}: "
                    "split with encode_corpus --val_fraction",
                )
            return
        if self.shared_documents is None:
            self.shared_documents = document_overlap(train_shards, val_shards)
        if not self._ask(gates.held_out(self.shared_documents, self.config)):
            raise StopRun(
                "REFUSED",
                f"{self.shared_documents} documents of {val_shards.folder} are in "
                f"{train_shards.folder} too: split with encode_corpus --val_fraction, or allow "
                "them with --max_overlap",
            )

    def _ask(self, gate: gates.Gate) -> bool:
        self.gates[gate.id] = gate  # the newest answer stands
        return gate.passed

    def _skip(self, gate_id: str, reason: str) -> None:
        self.not_asked.append({"id": gate_id, "reason": reason})

    def _utilisation(self, rate: float) -> float | None:
        return utilisation(
            rate,
            self.setup.model.config,
            self.config.seq_length,
            self.setup.parallel.num_devices,
        )

    def _announce(self) -> None:
        config, setup, found = self.config, self.setup, versions()
        options = setup.options
        lines = [
            f"{found['devices']} x {found['device']}, jax {found['jax']}, {config.parallel}, "
            f"{options['compute_dtype'].name} compute, attention {options['attention_impl']}, "
            f"loss {options['loss_impl']}",
            f"{setup.model.config.num_parameters():,} parameters, "
            f"{setup.train_shards.num_tokens:,} training tokens, {setup.batches.epochs:.2f} "
            f"epochs, {config.batch_size * config.seq_length:,} tokens a step",
        ]
        if self.step:
            lines.append(f"going on after step {self.step}")
        print("\n".join(lines), flush=True)
