"""Commands of studies (experiments/scheduler.py) as the pages that they set."""

import ast

from dpo_jax import judge, online_settings, pairs, registry, settings


def page_of(command, get_config):
  """The page with the options of its flags, each of which it has."""
  _, _, config, *flags = command
  page = get_config(config.partition(':')[2])
  for flag in flags:
    if flag.startswith('--config.'):
      path, _, value = flag.removeprefix('--config.').partition('=')
      *sections, option = path.split('.')
      section = page
      for name in sections:
        section = section[name]
      assert option in section, (command, option)
      section[option] = _value(value)
  return page.to_dict()


def _value(text):
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def check(module, page):
  """Checks the page as the command of this module does, before it runs."""
  if module == 'dpo_jax.train':
    (online_settings.of if 'rollouts' in page else settings.of)(page)
  else:
    found = {'dpo_jax.judge': judge.check, 'dpo_jax.pairs': pairs.check}
    registry.bind(found[module], page, 'the config')()


def data_sections(page):
  """What the page reads, each section whole."""
  shared, *apart = (
    page.get(name) or {} for name in ('data', 'train_data', 'eval_data')
  )
  return [x for x in [shared | x for x in apart if x] or [shared] if x]
