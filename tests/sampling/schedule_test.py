"""Packing of prompts, and which of them are decoded together."""

import numpy as np
import pytest

from dpo_jax.sampling import prompt_packing, schedule


def _prompts(count, seed=0):
  """With few tokens, so that many prompts have common prefixes."""
  rng = np.random.default_rng(seed)
  return [
    rng.integers(0, 3, rng.integers(1, 40)).tolist() for _ in range(count)
  ]


@pytest.mark.parametrize('rows', [1, 3])
def test_paths_lead_through_each_prompt(rows):
  prompts = _prompts(12)
  shares, samples = prompt_packing.shares(prompts)
  assert samples == 1 and {s.prompt for s in shares} == set(range(12))
  # The last row holds nothing.
  of_rows = [shares[r :: rows - 1] if rows > 1 else shares for r in range(rows)]
  of_rows[-1] = of_rows[-1] if rows == 1 else []
  packed = prompt_packing.pack(prompts, of_rows)
  layout, paths = packed.layout, packed.layout.paths
  assert packed.tokens_RxL.shape[0] == rows
  index_RxT = packed.index_B.reshape(layout.tree_length_RxT.shape)
  for (r, t), i in np.ndenumerate(index_RxT):
    if i < 0:
      assert layout.tree_length_RxT[r, t] == 1
      continue
    path = paths.index_RxTxP[r, t, : layout.tree_length_RxT[r, t]]
    assert packed.tokens_RxL[r, path].tolist() == prompts[i]
    assert layout.position_RxL[r, path].tolist() == list(range(len(path)))
  used = index_RxT >= 0
  for r, row in enumerate(of_rows):
    prefixes = {
      tuple(prompts[s.prompt][: n + 1])
      for s in row
      for n in range(len(prompts[s.prompt]))
    }
    # Each prefix once, the rest is padding.
    assert layout.segment_RxL[r].sum() == len(prefixes)
    longest = paths.index_RxTxP.shape[-1]
    for position in np.flatnonzero(layout.segment_RxL[r]):
      t, p = divmod(int(paths.home_RxL[r, position]), longest)
      assert used[r, t] and p < layout.tree_length_RxT[r, t]
      assert paths.index_RxTxP[r, t, p] == position


@pytest.mark.parametrize('rows', [1, 2, 8])
@pytest.mark.parametrize('num_samples', [1, 6, 8])
def test_all_samples_are_shared_out_once(rows, num_samples):
  for count in (1, 3, 8, 13):
    shares, samples = prompt_packing.shares(
      _prompts(count), num_samples=num_samples, rows=rows
    )
    found = sorted(
      (s.prompt, s.first + n) for s in shares for n in range(samples)
    )
    assert found == [(i, n) for i in range(count) for n in range(num_samples)]
    # No row has more to do than if each prompt were one share.
    most = -(-len(shares) // rows) * samples
    assert most <= -(-count // rows) * num_samples
    if not count * num_samples % rows and not num_samples % rows:
      assert most * rows == count * num_samples


@pytest.mark.parametrize('rows', [1, 4])
@pytest.mark.parametrize('slots_per_row', [1, 3, 16])
def test_every_prompt_gets_a_slot_of_its_own(rows, slots_per_row):
  """Sequences end in any order; a slot holds one prompt at a time."""
  rng = np.random.default_rng(slots_per_row)
  prompts = _prompts(57)
  shares, _ = prompt_packing.shares(prompts)
  plan = schedule.Schedule(
    prompts, shares, rows=rows, slots_per_row=slots_per_row
  )
  slots = rows * slots_per_row
  held, seen = {}, []
  while not plan.is_done():
    while (group := plan.next_group()) is not None:
      of_rows, slot_RxT = group
      for r, row in enumerate(of_rows):
        assert (slot_RxT[r, len(row) :] == -1).all()
        for share, slot in zip(row, slot_RxT[r]):
          assert 0 <= slot < slots_per_row
          assert r * slots_per_row + slot not in held
          held[r * slots_per_row + slot] = share
    assert held
    if len(seen) + len(held) < len(shares):
      # What waits joins as soon as this many slots are free.
      assert slots - len(held) < plan.wanted() <= max(1, slots // 8)
    wanted = plan.wanted()
    ended = np.ones(slots, bool)
    ended[list(held)] = False
    order = rng.permutation(list(held))
    ended[order[: max(0, wanted - (slots - len(held)))]] = True
    for slot, share in plan.take_out(ended):
      assert held.pop(slot) == share
      seen.append(share)
  assert sorted(seen) == sorted(shares)


def test_long_prompts_go_alone_and_short_ones_together():
  assert prompt_packing.most_in_a_row(prompt_packing.ROW_TOKENS + 1) == 1
  for longest in (5, 40, 100, 700):
    most = prompt_packing.most_in_a_row(longest)
    padded = prompt_packing.capacity(longest)
    assert most * padded <= prompt_packing.ROW_TOKENS < 2 * most * padded
