"""Installs dpo_jax; `pip install -e '.[test,parity]'` for its tests."""

import pathlib

import setuptools

CORE = [
  'absl-py',
  'chex',
  'etils[epath]',
  'filelock',  # Locks JAX's cache of compiled programs.
  'flax',
  'gguf',
  'grain',
  'huggingface-hub',
  'importlib-resources',  # tensorflow-datasets imports it undeclared.
  'jax>=0.10',
  'jinja2',
  'matplotlib',
  'ml-collections',
  'numpy',
  'optax',
  'orbax-checkpoint',
  'pyarrow',
  'safetensors>=0.8',
  'sentencepiece',
  'tensorboardX',
  'tensorflow-datasets',
  'tokenizers',
  'tqdm',
  'vaderSentiment',
]
NOTEBOOKS = ['ipykernel', 'nbclient', 'nbformat']
EXTRAS = {
  'gpu': ['jax[cuda13]'],
  'tpu': ['jax[tpu]'],
  'wandb': ['wandb'],
  'judge': ['openai'],
  # Compiles for TPUs that are not there: dpo_jax/plan.py.
  'plan': ['libtpu'],
  'parity': [
    'accelerate',
    'datasets',
    'torch==2.13.0',
    'transformers',
    'trl==1.16.0',
  ],
  # A headless Chromium, for tests of pages.
  'browser': ['PySide6-WebEngine'],
  # Executes experiments/notebooks.
  'notebooks': NOTEBOOKS,
  'test': [
    'hypothesis',
    'openai',
    'pytest',
    'pytest-xdist',
    'ruff',
    *NOTEBOOKS,
  ],
}

setuptools.setup(
  name='dpo_jax',
  version='0.1.0',
  description='Direct Preference Optimization in pure JAX',
  long_description=pathlib.Path('README.md').read_text('utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=[
    *setuptools.find_packages(include=['dpo_jax', 'dpo_jax.*']),
    'dpo_jax.configs',
  ],
  package_data={'dpo_jax.judges': ['people.html']},
  package_dir={'dpo_jax.configs': 'configs'},
  install_requires=CORE,
  extras_require=EXTRAS,
)
