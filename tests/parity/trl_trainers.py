"""TRL's trainers, constructed and run by themselves on a few pairs of ids."""

import contextlib
import io
import pathlib
import warnings

import datasets
import tokenizers
import transformers
import trl

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  from trl.experimental import cpo as trl_cpo

EOS = 0


def _dpo(model, reference, settings, **parts):
  args = trl.DPOConfig(**settings)
  return trl.DPOTrainer(model, reference, args, **parts)


def _cpo(model, reference, settings, **parts):
  del reference
  return trl_cpo.CPOTrainer(model, trl_cpo.CPOConfig(**settings), **parts)


TRAINERS = {'dpo': _dpo, 'cpo': _cpo}


def tokenizer(vocab_size):
  """Of the words w0, w1, ..., one an id, w0 being EOS and padding."""
  names = {f'w{i}': i for i in range(vocab_size)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, f'w{EOS}'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, eos_token=f'w{EOS}', pad_token=f'w{EOS}'
  )


def train(folder, trainer, make, steps, vocab_size, **settings):
  """([metrics of each step], folder of the model after the last).

  trainer: a key of TRAINERS; settings: of its config. make() is the model as it
  starts. steps: [[(prompt, chosen, rejected) of ids]], as many pairs in each;
  answers end with EOS, which is nowhere else.
  """
  folder = pathlib.Path(folder)

  def text(ids):
    return ''.join(f' w{i}' for i in ids)

  columns = ('prompt', 'chosen', 'rejected')
  rows = [
    dict(zip(columns, map(text, pair), strict=True))
    for pairs in steps
    for pair in pairs
  ]
  settings = dict(
    **dict(output_dir=folder / 'run', save_strategy='no', report_to='none'),
    **dict(use_cpu=True, bf16=False, gradient_checkpointing=False),
    **dict(logging_steps=1, disable_tqdm=True, lr_scheduler_type='constant'),
    **dict(train_sampling_strategy='sequential', max_steps=len(steps)),
    per_device_train_batch_size=len(steps[0]),
    **settings,
  )
  with quietly():
    run = TRAINERS[trainer](
      make(),
      make(),
      settings,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=tokenizer(vocab_size),
    )
    run.train()
    run.model.save_pretrained(folder / 'trained')
  return run.state.log_history[: len(steps)], folder / 'trained'


@contextlib.contextmanager
def quietly():
  """Without a printed line for each step, bars and deprecations."""
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
    warnings.catch_warnings(),
  ):
    warnings.simplefilter('ignore')
    yield
