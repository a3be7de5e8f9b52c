"""SFT on Reddit TL;DR: GPT-J 6B learns to summarise posts.

  python -m dpo_jax.train --config configs/tldr_sft.py
  python -m dpo_jax.train --config configs/tldr_dpo.py

The start and reference of section 6's summarisation experiment
(https://arxiv.org/abs/2305.18290; values and hours: dpo_jax/defaults.py). The
paper takes CarperAI's tuned GPT-J, hf://CarperAI/openai_summarize_tldr_sft.
This page makes such a model; to start from theirs, give tldr_dpo.py its
--config.model.uri. A repository must hold safetensors. From one with pickled
weights alone (.bin) make a folder, and name that as model.uri:

  AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER)
  AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)

with both from transformers.

One epoch, about 45M tokens: 2.2e18 FLOPs, estimated at 1.5 hours on an H200.
State takes 73 GB: more than an H100 or A100 has left beside activations
(--config.optimizer.name=adafactor takes 49 GB).

The paper gives no values for SFT. CarperAI's script
(github.com/CarperAI/trlx, examples/summarize_rlhf) has a learning rate of 1e-5,
100 steps of warmup, batches of 16 on each device, 550 tokens, five epochs and
AdamW; here it is one epoch with RMSprop, batches of 64.
`configs/tldr_sft.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.paper()
  c.model.uri = 'hf://EleutherAI/gpt-j-6b'
  # A local copy of the repository can be named with path. A post that is too
  # long keeps its end, which asks for the summary.
  c.data.update(
    source='tldr_sft',
    path='hf://datasets/CarperAI/openai_summarize_tldr',
    max_length=550,
    max_prompt_length=486,
    truncation='keep_end',
    max_drop_fraction=0.01,
  )
  c.eval_data.split = 'valid'
  c.method = dict(name='sft', normalise='tokens')
  c.schedule.update(peak=1e-5, warmup_steps=100)
  return defaults.cut_paper(c, variant)
