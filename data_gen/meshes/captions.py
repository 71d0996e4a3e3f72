"""Words for rendered objects, from their names and from their pixels."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dd3g.errors import UserError

STYLES = {
    "lowpoly": "low poly cartoon game asset",
    "pbr": "realistic render",
    "scan": "realistic photograph",
    "shape": "abstract render",
}
# Categories that name a source or mislead: most of the furniture for houses is not a house.
CATEGORIES = {
    "house_interior_pack": "furniture",
    "aws_house": "furniture",
    "real_time_strategy_pack": "building",
    "space/rock": "rock",
} | dict.fromkeys(
    "aws_ware aws_book aws_hosp gso khr ycb gazebo servicesim vrx prl ph rmf kenney misc".split(), ""
)
# Hue in degrees up to which a colour has its name.
HUES = (
    (15, "red"), (40, "orange"), (68, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue"),
    (290, "purple"), (345, "pink"), (361, "red"),
)  # fmt: skip
COLORS = ("black", "white", "grey", "brown", *dict.fromkeys(name for _, name in HUES))
SHADES = {"blue": ("navy", "sky"), "green": ("dark", "mint"), "yellow": ("golden", "cream")}  # dark, light
# What `picture_words` can say beside colours.
LOOKS = (
    "navy", "sky", "dark", "mint", "golden", "cream", "bright", "vivid", "pale", "colourful", "multicoloured",
    "tall", "wide", "flat", "thin", "above", "below",
)  # fmt: skip
_NOISE = frozenset(
    "transformed bits pack aws robomaker residential retail lvl level lod mat props base".split()
)


def name_words(name: str, category: str = "") -> list[str]:
    """Words in an object's name and category: "ChairA_01", "Furniture-Bits" -> chair, furniture.

    Names of colours are left out: those are taken from the pixels, which may have been recoloured.
    """
    text = f"{name} {CATEGORIES.get(category, category)}"
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    words = dict.fromkeys(re.findall(r"[a-z]{2,}", spaced.lower()))
    return [w for w in words if w not in _NOISE and w not in COLORS]


def read_manifest(path: str | Path) -> dict[str, list[str]]:
    """Id -> words, from a csv with the columns id, name and category.

    Raises:
        UserError: when it cannot be read or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return {row["id"]: name_words(row["name"], row["category"]) for row in csv.DictReader(stream)}
    except OSError as error:
        raise UserError(f"cannot read the manifest {path}: {error.strerror or error}") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a manifest ({error}): it needs the columns id, name and category"
        ) from error


def id_words(id: str) -> list[str]:
    """Words in an object's id, whose first part names its source: "mkt_wine_red" -> wine."""
    return name_words(id.partition("_")[2] or id)


def picture_words(rgba: NDArray[np.uint8], elevation: float = 10.0) -> list[str]:
    """What the pixels say: one or two colours, brightness, vividness, proportions, and the view.

    Args:
        rgba: (S, S, 4) straight alpha.
        elevation: of the camera, degrees.
    """
    solid = rgba[..., 3] > 127
    if not solid.any():
        return []
    rgb = rgba[..., :3][solid].astype(np.float32) / np.float32(255)  # (N, 3)
    shares = color_shares(rgb)
    # A second colour must be there to see, and a single one must not merely be the largest of many.
    words = [name for name, share in shares.most_common(2) if share > 0.22]
    high, low = rgb.max(1).mean(), rgb.min(1).mean()
    dark, light = high < 0.4, low > 0.5
    words += [SHADES[w][int(light)] for w in words[:1] if w in SHADES and (dark or light)]
    words += ["dark"] if dark else ["bright"] if light else []
    words += ["vivid", "bright"] if high - low > 0.5 else ["pale"] if light and high - low > 0.06 else []
    if sum(share > 0.1 for share in shares.values()) > 3:
        words += ["colourful", "multicoloured"]
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    words += ["tall"] if tall > 1.7 * wide else ["wide", "flat"] if wide > 1.7 * tall else []
    words += ["thin"] if solid.sum() < 0.35 * tall * wide else []
    words += ["above"] if elevation > 20 else ["below"] if elevation < 0 else []
    return list(dict.fromkeys(words))


def color_shares(rgb: NDArray[np.float32]) -> Counter[str]:
    """Share of the pixels (N, 3) sRGB 0..1 that goes by each name in `COLORS`."""
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    r, g, b = rgb.T
    safe = np.maximum(chroma, 1e-6)
    sector = np.where(
        high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    hue = np.searchsorted([limit for limit, _ in HUES], 60 * sector)
    named = np.array([COLORS.index(name) for _, name in HUES])[hue]
    grey = chroma < 0.02 + 0.18 * high
    named[(hue <= 2) & (high < 0.62) & (chroma < 0.8 * high)] = COLORS.index("brown")
    named[grey] = np.where(high[grey] > 0.75, COLORS.index("white"), COLORS.index("grey"))
    named[(high < 0.12) | grey & (high < 0.25)] = COLORS.index("black")
    counts = np.bincount(named, minlength=len(COLORS)) / max(1, len(rgb))
    return Counter({name: float(share) for name, share in zip(COLORS, counts, strict=True) if share})
