"""A picture of which slots of a manifold are filled, and with what priority, that can be read for any geometry."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 322  # pixels that the longer side comes near to; TensorBoard drops pixels of a wider picture
LARGEST = 16  # pixels of a slot
MOST = 2**17  # cells that are drawn; neighbouring buckets of a larger memory share one
WIDEST = 128  # slots of a bucket that stand in one line
LEVELS = 16  # shades of priority
GREYS = 6  # of the caption's letters, the last of them white
GAP, EMPTY = GREYS - 1, GREYS  # places in the palette; then come the shades
ANCHORS = ((0, 34, 78), (124, 123, 120), (253, 231, 55))  # of cividis, even for eyes that see few colours
MARGIN, LETTERS, LINE = 5, 11, 14  # pixels


def palette() -> np.ndarray:
    """Colours [n, 3] of the places: greys from black to white, light grey for empty slots, shades of priority."""
    greys = np.repeat(np.linspace(0, 255, GREYS)[:, None], 3, axis=1)
    at = np.linspace(0, len(ANCHORS) - 1, LEVELS)
    shades = [np.interp(at, np.arange(len(ANCHORS)), channel) for channel in zip(*ANCHORS, strict=True)]
    return np.vstack([greys, [[228, 228, 228]], np.stack(shades, axis=1)]).round().astype(np.uint8)


def pooled(priority: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """The priorities [B, S] in at most about `most` cells, and how many neighbouring buckets share a line of them.

    A cell is the mean of the filled slots behind it, and NaN if there is none.
    """
    group = -(-priority.size // most)
    rest = -len(priority) % group
    padded = np.pad(priority, ((0, rest), (0, 0)), constant_values=np.nan).reshape(-1, group, priority.shape[1])
    count = np.isfinite(padded).sum(1)
    return np.divide(np.nansum(padded, 1), count, out=np.full(count.shape, np.nan), where=count > 0), group


def shades(priority: np.ndarray) -> np.ndarray:
    """Places in the palette of priorities, NaN where a slot is empty; the least is the darkest."""
    filled = np.isfinite(priority)
    found = np.full(priority.shape, EMPTY, np.uint8)
    if filled.any():
        low, high = priority[filled].min(), priority[filled].max()
        share = (priority[filled] - low) / max(high - low, np.finfo(float).tiny)
        found[filled] = EMPTY + 1 + np.minimum(share * LEVELS, LEVELS - 1).astype(np.uint8)
    return found


def folded(cells: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Cells [B, S] in strips that stand side by side and are about as wide as high; strips, and buckets in each.

    A bucket is a line of its strip, or a block of lines if it has very many slots.
    """
    buckets, slots = cells.shape
    width = min(slots, WIDEST)
    lines = -(-slots // width)
    height = lines + (lines > 1)
    strips = int(np.clip(round((buckets * height / (width + 1)) ** 0.5), 1, buckets))
    each = -(-buckets // strips)
    strips = -(-buckets // each)
    whole = np.full((strips * each, lines * width), GAP, np.uint8)
    whole[:buckets, :slots] = cells
    blocks = np.full((strips * each, height, width + 1), GAP, np.uint8)
    blocks[:, :lines, :width] = whole.reshape(-1, lines, width)
    picture = blocks.reshape(strips, each * height, width + 1).transpose(1, 0, 2).reshape(each * height, -1)
    return picture[:, :-1], strips, each


def caption(priority: np.ndarray, strips: int, each: int, group: int) -> list[str]:
    """What the axes and the shades are, line by line."""
    (buckets, slots), filled = priority.shape, np.isfinite(priority)
    line = "row" if slots <= WIDEST else f"block of {-(-slots // WIDEST)} rows"
    said = [
        f"{counted(buckets, 'bucket')} x {counted(slots, 'slot')}, {filled.mean():.1%} filled (grey: empty)",
        f"each {line} is {'a bucket' if group == 1 else f'the mean of {group} buckets'}, its slots from left to right",
    ]
    if strips > 1:
        said.append(f"{strips} strips side by side, each of {each} {'buckets' if group == 1 else 'rows'}")
    if filled.any():
        said.append(f"priority from {priority[filled].min():.3g} (dark) to {priority[filled].max():.3g} (bright)")
    return said


def counted(count: int, what: str) -> str:
    """So many of something."""
    return f"{count} {what}{'s' * (count != 1)}"


def slot_map(priority: np.ndarray) -> tuple[bytes, int, int]:
    """A PNG of priorities [B, S], NaN where a slot is empty, with its height and width in pixels."""
    cells, group = pooled(priority, MOST)
    picture, strips, each = folded(shades(cells))
    scale = int(np.clip(SIDE // max(picture.shape), 1, LARGEST))
    picture = picture.repeat(scale, 0).repeat(scale, 1)
    lines, font = caption(priority, strips, each, group), ImageFont.load_default(LETTERS)
    width, top = max(SIDE, picture.shape[1]) + 2 * MARGIN, LINE * len(lines) + 2 * MARGIN
    letters = Image.new("L", (width, top), 255)
    for i, line in enumerate(lines):
        ImageDraw.Draw(letters).text((MARGIN, MARGIN + i * LINE), line, 0, font)
    whole = np.full((top + picture.shape[0] + MARGIN, width), GAP, np.uint8)
    whole[:top] = np.round(np.asarray(letters) / 255 * (GREYS - 1))
    whole[top : top + picture.shape[0], MARGIN : MARGIN + picture.shape[1]] = picture
    image, file = Image.fromarray(whole, "P"), io.BytesIO()
    image.putpalette(palette().tobytes())
    image.save(file, "PNG")
    return file.getvalue(), *whole.shape
