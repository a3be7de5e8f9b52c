"""What JAX compiles while a test runs."""

import contextlib

import jax


@contextlib.contextmanager
def recorded():
  """A list that names each function compiled inside, such as 'jit(score)'."""
  compiled = []

  def listen(event, duration, **kwargs):
    if event.endswith('backend_compile_duration'):
      compiled.append(kwargs.get('fun_name'))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
