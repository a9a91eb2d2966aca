"""A training run from its settings to its report."""

import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from apr_jax.files import write_json
from apr_jax.model import load_model
from apr_jax.model.params import to_named
from apr_jax.progress import Progress
from apr_jax.text.batches import document_overlap
from apr_jax.train import gates
from apr_jax.train.checkpoint import Checkpoints
from apr_jax.train.clock import Clock
from apr_jax.train.config import TrainConfig, TrainError
from apr_jax.train.data import EvalBatches, TrainBatches, open_data
from apr_jax.train.devices import model_options, peak_memory_bytes, utilisation, versions
from apr_jax.train.evaluate import Evaluation, Evaluator, evaluate_file
from apr_jax.train.optimizer import make_optimizer
from apr_jax.train.parallel import DataParallel
from apr_jax.train.plot import plot_losses
from apr_jax.train.records import Records, throughput
from apr_jax.train.save import save_model, settle_folder
from apr_jax.train.step import TrainState, train_step

RECORDS, MODEL, PLOT, CHECKPOINTS = "records.jsonl", "model.apr", "loss.png", "checkpoints"


class StopRun(Exception):
    """The run ends here: with which status, and why."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


def train(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune `config.init` on `config.shards` and report what happened.

    Writes into `config.out`: the settings, a JSONL of every step and evaluation, checkpoints to
    resume from, the loss curve and, unless the run was refused or aborted, `model.apr`. A killed
    run that is started again goes on from its last checkpoint and ends with the same parameters.

    Returns:
      The report. Its `status` is OK (every gate passed), MISSED (finished, but a gate did not
      pass), ABORTED (stopped in the middle) or REFUSED (stopped before the first step).

    Raises:
      UserError: settings, data, model file or devices do not fit; nothing was trained.
    """
    trainer = _Trainer(config)
    try:
        trainer.check_start()
        trainer.run()
        trainer.deliver()
        passed = all(gate.passed for gate in trainer.gates)
        status, why = ("OK", "every gate passed") if passed else ("MISSED", trainer.missed())
    except StopRun as stop:
        status, why = stop.status, str(stop)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TrainError(
            f"step {trainer.step + 1} needs more memory than the device has: lower batch_size "
            f"({config.batch_size}) or raise accumulate ({config.accumulate}); remat saves more"
        ) from error
    finally:
        trainer.close()
    report = trainer.report(status, why)
    plot_losses(trainer.out / RECORDS, trainer.out / PLOT, report["uniform_loss"])
    write_json(trainer.out / "report.json", report)
    return report


class _Trainer:
    """One run's model, data, compiled steps and findings."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.out = config, pathlib.Path(config.out)
        self.parallel = DataParallel(config.parallel)
        self.parallel.check_batch(config.batch_size // config.accumulate, "batch_size / accumulate")
        begun = any((self.out / CHECKPOINTS).glob("[0-9]*"))
        settle_folder(self.out, config, begun=begun)
        self.train_shards, self.val_shards = open_data(config)
        self.options = model_options(
            config.compute_dtype, config.attention, mask_documents=config.mask_documents
        ) | {"remat": config.remat}
        self.model, params = load_model(config.init, **self.options)
        self.model_config = self.model.config
        for shards in (self.train_shards, self.val_shards):
            shards.check_ids(self.model_config.vocab_size)
        self.batches = TrainBatches(self.train_shards, config)
        self.val_batches = EvalBatches.of_run(self.val_shards, config)
        self.evaluate = Evaluator(self.model, self.val_shards, self.val_batches, self.parallel)

        optimizer = make_optimizer(config)
        self.leaf_names = list(to_named(params))
        self.state = self.parallel.replicate(
            TrainState(jnp.int32(0), params, optimizer.init(params))
        )
        self.run_step = self.parallel.compile(
            functools.partial(train_step, model=self.model, optimizer=optimizer), donate=True
        )
        self.uniform = math.log(self.model_config.vocab_size)
        self.clock = Clock()
        self.delivered: str | None = None
        self.gates: list[gates.Gate] = []
        self.not_asked: list[dict[str, str]] = []
        self.checkpoints = Checkpoints(self.out / CHECKPOINTS)
        self._resume()

    def _resume(self) -> None:
        """Take up the newest checkpoint, or measure where the model stands before any step."""
        self.step = self.checkpoints.latest_step() or 0
        if self.step:
            self.state, found = self.checkpoints.restore(self.step, self.state)
            self.evaluations = {int(k): Evaluation(**v) for k, v in found.items()}
        self.records = Records(self.out / RECORDS, keep_steps=self.step or -1)
        self._announce()
        if not self.step:
            self.evaluations = {}
            self._evaluate()

    def check_start(self) -> None:
        """Ask what can be asked before the first step.

        Raises:
          StopRun: the data leak, or the model starts worse than a sound one can.
        """
        self._check_held_out()
        initial = self.evaluations[0].loss
        if self.config.mode == "finetune":
            if (warning := gates.likely_cause(initial, self.uniform)) is not None:
                print(f"warning: before the first step, {warning}", flush=True)
            if (cap := self.config.max_initial_val_loss) is None:
                self._skip("INIT-VAL-LOSS", "max_initial_val_loss is not set")
            elif not self._ask(gates.initial_loss(initial, cap)):
                raise StopRun("REFUSED", f"{warning}; crosscheck says which part is wrong")
        else:
            self._skip("INIT-VAL-LOSS", "a model from scratch knows nothing before its first step")

    def run(self) -> None:
        """Take the steps that are left.

        Raises:
          StopRun: a loss or gradient is not finite, or the held-out loss diverges.
        """
        config, running = self.config, None
        with Progress("training", config.steps, "steps", initial=self.step) as bar:
            while self.step < config.steps:
                batch = self.parallel.split(self.batches.batch(self.step), axis=1)
                self.clock.start()
                self.state, metrics = self.run_step(self.state, batch)
                self.step += 1
                # The step before is waited for only now, so that the device is never idle.
                if running is not None:
                    self._account(*running, bar)
                running = (self.step, metrics)
                last = self.step == config.steps
                evaluate = last or self.step % config.eval_every == 0
                save = last or self.step % config.save_every == 0
                if evaluate or save:
                    self._account(*running, bar)
                    running = None
                    self.clock.pause()
                if evaluate:
                    self._evaluate()
                    self._check_divergence()
                if save:
                    found = {str(k): v.to_json() for k, v in self.evaluations.items()}
                    self.checkpoints.save(self.step, self.state, found)
        self._ask(gates.finite(0))

    def deliver(self) -> None:
        """Write the model file, load it again as a user would, and ask the last questions."""
        config, final, initial = self.config, self._last, self.evaluations[0]
        path = self.out / MODEL
        save_model(path, to_named(self.state.params), config)
        reloaded, _ = evaluate_file(
            path, self.val_shards, self.val_batches, self.parallel, **self.options
        )
        self.delivered = MODEL
        self._ask(gates.reload(reloaded.loss, final.loss))
        self._ask(gates.improved(final.loss, initial.loss))
        for name, value, gate in (
            ("GATE-TRAIN-003", config.target_val_loss, gates.target),
            ("VAL-LOSS-FLOOR", config.min_val_loss, gates.floor),
        ):
            if value is None:
                self._skip(name, "no threshold is set")
            else:
                self._ask(gate(final.loss, value))

    def report(self, status: str, why: str) -> dict[str, Any]:
        """Everything that the run found, for report.json."""
        final, initial = self._last, self.evaluations[0]
        rate, first_step_seconds = throughput(self.out / RECORDS)
        devices = self.parallel.num_devices
        return {
            "status": status,
            "verdict": why,
            "val_loss": _number(final.loss),
            "val_loss_bits_per_byte": final.bits_per_byte,
            "initial_val_loss": _number(initial.loss),
            "initial_val_loss_bits_per_byte": initial.bits_per_byte,
            "best_val_loss": _number(min(e.loss for e in self.evaluations.values())),
            "uniform_loss": self.uniform,
            "val_tokens": final.tokens,
            "steps": self.step,
            "tokens_per_second": rate,
            "model_flops_utilisation": rate
            and utilisation(rate, self.model_config, self.config.seq_length, devices),
            "first_step_seconds": first_step_seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "gates": [gate.to_json() for gate in self.gates],
            "gates_not_asked": self.not_asked,
            "parameters": self.model_config.num_parameters(),
            "train_tokens": self.train_shards.num_tokens,
            "epochs": self.batches.epochs,
            "compute_dtype": self.options["compute_dtype"].name,
            "attention": self.options["attention_impl"],
            "config": self.config.to_json(),
            "versions": versions(),
            "model": self.delivered,
        }

    def missed(self) -> str:
        """The gates that did not pass, in one line."""
        return "; ".join(
            f"{gate.id}: {gate.says} is {gate.value}, threshold {gate.threshold:g}"
            for gate in self.gates
            if not gate.passed
        )

    def close(self) -> None:
        """Release the files."""
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
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._ask(gates.finite(1))
            raise StopRun("ABORTED", f"step {step}: {self._culprit(loss, metrics)} is not finite")
        self.records.add(
            "step",
            step,
            train_loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            tokens=int(tokens),
            tokens_per_sec=tokens / seconds,
            wall_ms=seconds * 1e3,
            compiled=compiled,
        )
        bar.update(1, f"loss {loss:.3f}, held-out {self._last.loss:.3f}")

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
            val_loss=_number(found.loss),
            val_loss_bits_per_byte=found.bits_per_byte,
            val_tokens=found.tokens,
        )

    def _check_divergence(self) -> None:
        steps = sorted(self.evaluations)
        loss, before = (self.evaluations[step].loss for step in (steps[-1], steps[-2]))
        gate = gates.no_divergence(loss, before)
        if len(steps) == 2 and self.config.max_first_val_loss is not None:
            gate = gates.first_loss(loss, self.config.max_first_val_loss)
        self.gates = [g for g in self.gates if g.id != gate.id]  # the newest answer stands
        if not self._ask(gate):
            raise StopRun(
                "ABORTED",
                f"divergence at step {self.step}: held-out loss {loss:.3f}, before {before:.3f}, "
                f"allowed {gate.threshold:.3f}",
            )

    def _check_held_out(self) -> None:
        if self.train_shards.eos_id is None or self.val_shards.eos_id is None:
            self._skip("HELD-OUT", "the shards do not say where documents end")
            return
        documents = document_overlap(self.train_shards, self.val_shards)
        if not self._ask(gates.held_out(documents, self.config)):
            raise StopRun(
                "REFUSED",
                f"{documents} documents of {self.config.val_shards} are in {self.config.shards} "
                "too: split with encode_corpus --val_fraction, or allow them with --max_overlap",
            )

    def _ask(self, gate: gates.Gate) -> bool:
        self.gates.append(gate)
        return gate.passed

    def _skip(self, gate_id: str, reason: str) -> None:
        self.not_asked.append({"id": gate_id, "reason": reason})

    def _announce(self) -> None:
        config, options, found = self.config, self.options, versions()
        parameters, tokens = self.model_config.num_parameters(), self.train_shards.num_tokens
        lines = [
            f"{found['devices']} x {found['device']}, jax {found['jax']}, {config.parallel}, "
            f"{options['compute_dtype'].name} compute, attention {options['attention_impl']}",
            f"{parameters:,} parameters, {tokens:,} training tokens, {self.batches.epochs:.2f} "
            f"epochs, {config.batch_size * config.seq_length:,} tokens a step",
        ]
        if self.step:
            lines.append(f"going on after step {self.step}")
        print("\n".join(lines), flush=True)


def _number(value: float) -> float | None:
    """`value`, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None
