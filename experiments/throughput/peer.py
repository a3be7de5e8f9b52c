"""The peer's worker: TRL's DPOTrainer, its steps held until run.py asks.

Everything is TRL's default but what the comparison fixes (see worker.py), the
order of the rows, and what a CPU needs: float32, no gradient checkpointing.
"""

import json
import tempfile
import time

import datasets
import transformers
import trl

from experiments.throughput import worker


class _Trainer(trl.DPOTrainer):
  """Counts the tokens of each batch on its way into the step."""

  def training_step(self, model, inputs, *args, **kwargs):
    mask = inputs['attention_mask']
    self.tokens = {'real': int(mask.sum()), 'computed': mask.numel()}
    return super().training_step(model, inputs, *args, **kwargs)


class _Gate(transformers.TrainerCallback):
  """Blocks before each step and answers when its metrics are known."""

  def __init__(self, channel: worker.Channel):
    self.channel, self.trainer = channel, None

  def on_step_begin(self, *args, **kwargs):
    self.channel.wait()

  def on_step_end(self, *args, **kwargs):
    self.channel.stop()

  def on_log(self, *args, logs, **kwargs):
    if 'logps/chosen' in logs:
      self.channel.report(
        loss=float(logs['loss']),
        logps_chosen=float(logs['logps/chosen']),
        tokens=self.trainer.tokens,
      )


def run(
  channel: worker.Channel,
  *,
  model: str,
  path: str,
  batch: int,
  steps: int,
  max_length: int,
  precompute: bool,
  seed: int,
) -> None:
  """Trains on the first `batch * steps` rows of `path`, in their order."""
  began = time.perf_counter()
  with open(path, encoding='utf-8') as f:
    rows = [json.loads(line) for line in f][: batch * steps]
  gate = _Gate(channel)
  with tempfile.TemporaryDirectory() as folder:
    settings = trl.DPOConfig(
      output_dir=folder,
      per_device_train_batch_size=batch,
      max_steps=steps,
      learning_rate=worker.LEARNING_RATE,
      lr_scheduler_type='constant',
      optim='adamw_torch',
      max_grad_norm=worker.MAX_GRAD_NORM,
      beta=worker.BETA,
      max_length=max_length,
      precompute_ref_log_probs=precompute,
      gradient_checkpointing=False,
      train_sampling_strategy='sequential',
      use_cpu=True,
      bf16=False,
      fp16=False,
      logging_steps=1,
      report_to=[],
      save_strategy='no',
      seed=seed,
    )
    gate.trainer = _Trainer(
      model=transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype='float32'
      ),
      args=settings,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=transformers.AutoTokenizer.from_pretrained(model),
      callbacks=[gate],
    )
    channel.ready(
      setup_s=time.perf_counter() - began,
      digests=[_digest(row) for row in gate.trainer.train_dataset],
    )
    gate.trainer.train()


def _digest(row: dict) -> str:
  return worker.digest(
    row['prompt_ids'], row['chosen_ids'], row['rejected_ids']
  )


if __name__ == '__main__':
  run(worker.Channel(), **worker.options())
