"""Peaks: from the table for listed devices, measured for others."""

import types

import jax
import pytest

from dpo_jax.training import devices


def _device(kind, process=0):
  return types.SimpleNamespace(
    device_kind=kind, platform='other', process_index=process
  )


def test_published_peaks():
  peak, source = devices.peak_flops(_device('NVIDIA H200'))
  assert peak == 989.5e12 and 'data sheet' in source
  peak, source = devices.peak_flops(_device('TPU v5 lite'), dtype='float32')
  assert peak == 197e12 and 'v5e' in source


@pytest.mark.parametrize(
  'kind',
  ['NVIDIA A100-SXM4-40GB MIG 1g.5gb', 'NVIDIA H100', 'TPU v4 lite', 'cpu'],
)
def test_similar_names_are_measured(kind, monkeypatch):
  monkeypatch.setattr(devices, '_measure', lambda device: 7.0)
  peak, source = devices.peak_flops(_device(kind))
  assert peak == 7.0
  assert source.startswith('measured') and kind in source


def test_devices_add_up():
  pod = [_device('TPU v4', process=i // 4) for i in range(8)]
  # An iterator can be read only once.
  assert devices.total_peak_flops(iter(pod))[0] == 8 * 275e12


def test_simulated_cpu_devices_are_one_machine():
  assert len(jax.devices()) == 8
  mesh = jax.sharding.Mesh(jax.devices(), ('data',))
  total, source = devices.total_peak_flops(mesh.devices.flat)
  assert total == devices.peak_flops(jax.devices()[0])[0]
  assert source.startswith('measured')
  # A slow core to a large server.
  assert 1e8 < total < 1e14
