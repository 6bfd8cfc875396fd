"""The map of slots: every slot is where the caption says, whatever the geometry."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mantra_ray.sweep import slot_map as module
from mantra_ray.sweep.slot_map import EMPTY, GAP, LEVELS, MOST, SIDE, WIDEST, caption, folded, pooled, shades, slot_map


def memory(buckets, slots, share, seed=0):
    """Priorities [B, S]; each bucket is filled from its first slot on."""
    rng = np.random.default_rng(seed)
    held = rng.binomial(slots, share, size=buckets)
    priority = rng.gamma(3.0, 1.0, size=(buckets, slots)).astype(np.float32)
    return np.where(np.arange(slots) < held[:, None], priority, np.nan)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_slot_has_its_place_and_nothing_else_is_drawn(buckets, slots, seed):
    cells = np.random.default_rng(seed).integers(EMPTY, EMPTY + 1 + LEVELS, (buckets, slots)).astype(np.uint8)
    picture, strips, each = folded(cells)
    assert (picture != GAP).sum() == buckets * slots and (strips - 1) * each < buckets <= strips * each
    width = min(slots, WIDEST)
    lines = -(-slots // width)
    height = lines + (lines > 1)  # blocks are set apart
    for bucket in range(buckets):
        strip, row = divmod(bucket, each)
        for line in range(lines):
            mine = cells[bucket, line * width : (line + 1) * width]
            left = strip * (width + 1)
            assert np.array_equal(picture[row * height + line, left : left + len(mine)], mine)


@pytest.mark.parametrize(
    "buckets, slots", [(512, 32), (2048, 8), (4096, 4), (16384, 1), (1, 16384), (11, 1489), (3, 2)]
)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_any_geometry_is_a_small_picture_about_as_wide_as_high(buckets, slots, share):
    png, height, width = slot_map(memory(buckets, slots, share))
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.size == (width, height) and width <= SIDE + 20 and height <= SIDE + 80
    assert len(png) < 20_000
    if buckets * slots == 16384:
        picture, *_ = folded(shades(memory(buckets, slots, share)))
        assert 0.5 < picture.shape[0] / picture.shape[1] < 2 and min(picture.shape) >= 80
    colours = {tuple(colour) for _, colour in image.convert("RGB").getcolors()}
    drawn = {colour for colour in colours if len(set(colour)) > 1}  # all but greys
    assert bool(drawn) == (share > 0)


def test_shades_rise_with_priority_and_empty_slots_have_none():
    priority = np.array([[1.0, np.nan], [2.0, 5.0]])
    found = shades(priority)
    assert found[0, 1] == EMPTY and found[0, 0] == EMPTY + 1 and found[1, 1] == EMPTY + LEVELS
    assert found[0, 0] < found[1, 0] < found[1, 1]
    assert (shades(np.full((2, 2), 3.0)) == EMPTY + 1).all() and (shades(np.full((2, 2), np.nan)) == EMPTY).all()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_neighbours_that_share_a_cell_are_the_mean_of_what_is_filled(buckets, slots, most):
    priority = memory(buckets, slots, 0.5, seed=buckets)
    found, group = pooled(priority, most)
    for row, line in enumerate(found):
        for slot, value in enumerate(line):
            behind = priority[row * group : (row + 1) * group, slot]
            behind = behind[np.isfinite(behind)]
            assert value == pytest.approx(behind.mean() if len(behind) else np.nan, nan_ok=True)
    assert len(found) == -(-buckets // group) and found.size <= most + slots
    assert group == 1 or buckets * slots > most


def test_a_large_memory_is_pooled_and_a_usual_one_is_not(monkeypatch):
    assert pooled(memory(4096, 4, 0.5), MOST)[1] == 1
    monkeypatch.setattr(module, "MOST", 1000)
    png, height, width = slot_map(memory(1000, 4, 0.5))
    assert max(height, width) < 2 * SIDE and len(png) < 20_000


def test_the_caption_says_what_the_axes_are():
    text = "\n".join(caption(memory(512, 32, 0.25), 4, 128, 1))
    assert text.startswith("512 buckets x 32 slots, 2") and "each row is a bucket, its slots from left to right" in text
    assert "4 strips side by side, each of 128 buckets" in text and "priority from" in text and "(bright)" in text
    text = "\n".join(caption(np.full((1, 1489), np.nan), 1, 1, 1))
    assert "1 bucket x 1489 slots, 0.0% filled" in text and "each block of 12 rows is a bucket" in text
    assert "priority" not in text and "strips" not in text
    assert "each row is the mean of 8 buckets" in "\n".join(caption(memory(64, 2, 0.5), 2, 4, 8))
