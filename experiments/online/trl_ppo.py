"""The peer's worker: TRL's PPOTrainer, its steps held until run.py asks.

TRL 1.12 is the last release with a PPO trainer. Everything is its default but
what the comparison fixes (see speed.py) and what a CPU needs.
"""

import tempfile
import time

import datasets
import torch
import transformers
from trl.experimental import ppo

from experiments.throughput import worker


class _Gate(transformers.TrainerCallback):
  """Answers after each step, then blocks until the next one is asked for."""

  def __init__(self, channel: worker.Channel):
    self.channel = channel

  def on_train_begin(self, *args, **kwargs):
    self.channel.wait()

  def on_log(self, *args, logs=None, **kwargs):
    self.logs = logs

  def on_step_end(self, *args, **kwargs):
    self.channel.stop()
    self.channel.report(
      reward=float(self.logs.get('objective/scores', float('nan'))),
      entropy=float(self.logs.get('policy/entropy_avg', float('nan'))),
    )
    self.channel.wait()


def run(channel: worker.Channel, *, model: str, reward: str, **o) -> None:
  """Trains on `prompts`, lists of ids, one completion of each row."""
  began = time.perf_counter()
  gate = _Gate(channel)
  tokenizer = transformers.AutoTokenizer.from_pretrained(model)
  tokenizer.pad_token = tokenizer.eos_token

  def classifier():
    return transformers.AutoModelForSequenceClassification.from_pretrained(
      reward, num_labels=1, dtype=torch.float32
    )

  def policy():
    return transformers.AutoModelForCausalLM.from_pretrained(
      model, dtype=torch.float32
    )

  rows = [{'input_ids': ids} for ids in o['prompts']]
  with tempfile.TemporaryDirectory() as folder:
    settings = ppo.PPOConfig(
      output_dir=folder,
      per_device_train_batch_size=len(rows) // o['minibatches'] // o['parts'],
      gradient_accumulation_steps=o['minibatches'] * o['parts'],
      num_mini_batches=o['minibatches'],
      num_ppo_epochs=o['epochs'],
      total_episodes=len(rows) * o['steps'],
      local_rollout_forward_batch_size=len(rows),
      response_length=o['max_new_tokens'],
      temperature=1.0,
      stop_token=None,
      learning_rate=o['learning_rate'],
      lr_scheduler_type='constant',
      kl_coef=0.05,
      gradient_checkpointing=False,
      num_sample_generations=0,
      use_cpu=True,
      bf16=False,
      fp16=False,
      report_to=[],
      save_strategy='no',
      logging_steps=1,
      seed=o['seed'],
    )
    trainer = ppo.PPOTrainer(
      args=settings,
      processing_class=tokenizer,
      model=policy(),
      ref_model=policy(),
      reward_model=classifier(),
      value_model=classifier(),
      train_dataset=datasets.Dataset.from_list(rows),
      eval_dataset=datasets.Dataset.from_list(rows[:1]),
      callbacks=[gate],
    )
    channel.ready(setup_s=time.perf_counter() - began)
    trainer.train()


if __name__ == '__main__':
  run(worker.Channel(), **worker.options())
