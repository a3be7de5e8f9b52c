"""Runs of ours that others are compared with, and what these start from."""

import contextlib

import jax
import jax.numpy as jnp
import torch
import transformers

from dpo_jax import methods, models, registry, weights
from dpo_jax.training import optimizers
from dpo_jax.training import step as steps_lib
from tests import forests

VOCAB = forests.VOCAB
NEW = dict(vocab_size=VOCAB, initializer_range=0.2)
MODELS = {
  'llama': transformers.LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    **NEW,
  ),
  'gpt2': transformers.GPT2Config(
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=64,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=0,
    eos_token_id=0,
    **NEW,
  ),
}


@contextlib.contextmanager
def one_thread():
  """More would wait for each other longer than such small sums take."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


def save(path, name):
  """Writes a random model; returns what makes the same one in PyTorch."""
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(MODELS[name])
  model.save_pretrained(path)

  def make():
    copy = transformers.AutoModelForCausalLM.from_pretrained(
      path, dtype=torch.float32, attn_implementation='eager'
    )
    return copy.eval()

  return make


def examples(packed, step):
  """[[(prompt, completion) of each of K]] of a step, checked with its batch."""
  size, records = packed.placement.batch_size, packed.placement.records
  out, ids = [], []
  for record, examples in packed.placement.stream.slice(
    step * size, (step + 1) * size
  ):
    answers = [c.tolist() for c in records.completions(record)]
    prompt = records.prompt(record).tolist()
    out += [[(prompt, answers[c]) for c in example] for example in examples]
    ids += [record] * len(examples)
  in_batch = packed[step].example_record_RxE
  assert sorted(in_batch[in_batch >= 0]) == sorted(ids)
  return out


def run(path, method, optimizer, packed, split=1, *, peak, warmup, clip):
  """(the metrics of every step, the parameters after the last).

  method, optimizer: sections of a config. split: accumulation steps.
  """
  config, params = weights.load(path)
  steps = len(packed)
  schedule = registry.build(
    optimizers.SCHEDULES,
    dict(name='constant', peak=peak, warmup_steps=warmup),
    'schedule',
  )(steps)
  tx = registry.build(optimizers.OPTIMIZERS, optimizer, 'optimizer')(schedule)
  method = registry.build(methods.METHODS, method, 'method')()(
    models.policy(config)
  )
  state = steps_lib.init_state(
    method, tx, jax.tree.map(jnp.copy, params), jax.random.key(0)
  )
  step = steps_lib.make_train_step(
    method, tx, accumulation_steps=split, max_grad_norm=clip
  )
  frozen = method.freeze(params)
  out = []
  for index in range(steps):
    state, metrics = step(state, frozen, packed[index])
    out.append({k: float(s) / float(c) for k, (s, c, *_) in metrics.items()})
  return out, state.params
