"""The figures of a set as one HTML page without scripts, fonts or network."""

from __future__ import annotations

import io
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_gen.filters.rules import REASONS, RULES
from data_gen.reports.figures import Figures, Shown
from dd3g.io.atomic import replacing

THUMBNAIL = 112
_BINS = 40
_WIDTH, _HEIGHT = 320, 92  # of a histogram


def save_page(figures: Figures, shown: Sequence[Shown], path: str | Path, processes: int = 1) -> Path:
    """Write the page.

    Args:
        figures: of the set.
        shown: pictures of the contact sheet.
        path: the .html file.
        processes: that go on making the set.

    Returns:
        The path.

    Raises:
        UserError: when the place can't be written to.
    """
    values = {
        "title": escape(figures.place),
        "summary": _summary(figures),
        "tiles": _tiles(figures, processes),
        "reasons": _reasons(figures),
        "groups": _groups(figures),
        "histograms": _histograms(figures),
        "speed": _speed(figures),
        "sheet": "".join(map(_thumbnail, shown)) or "<p>No shard is finished yet.</p>",
        "made": _made(figures),
    }
    template = Path(__file__).with_name("stats.html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    with replacing(path) as partial:
        partial.write_bytes(page.encode("utf-8", "replace"))
    return Path(path)


def _summary(figures: Figures) -> str:
    missing = sum(figures.missing.values())
    if not figures.left and not figures.in_work:
        state = "Complete"
    else:
        state = f"{figures.done / max(figures.asked, 1):.1%} done"
    return f"{state}: {_count(figures.pictures)} of {_count(figures.asked)} pictures" + (
        f", {_count(missing)} missing" if missing else ""
    )


def _tiles(figures: Figures, processes: int) -> str:
    hours, size = figures.hours_left(processes), figures.bytes_left
    wall = figures.seconds["wall"]
    kept = figures.pictures + figures.in_work
    tiles = [
        (
            "pictures",
            _count(kept),
            f"in {_count(figures.shards)} finished shards, {_count(figures.in_work)} in work",
        ),
        ("still to do", _count(figures.left), "prompts without a picture and with attempts left"),
        ("missing", _count(sum(figures.missing.values())), "prompts without an attempt left"),
        (
            "accepted",
            f"{kept / figures.tries:.1%}" if figures.tries else "–",
            f"of {_count(figures.tries)} tries",
        ),
        ("speed", f"{_count(3600 * kept / wall)}/h" if wall else "–", "pictures an hour and process"),
        ("time left", _duration(hours), f"with {processes} process{'es' if processes > 1 else ''}"),
        ("on disk", _bytes(figures.bytes), f"{_bytes(figures.bytes / max(figures.pictures, 1))} a picture"),
        (
            "disk still needed",
            _bytes(size),
            f"{_bytes(figures.free)} free" if figures.free is not None else "",
        ),
    ]
    short = size is not None and figures.free is not None and size > figures.free
    return "".join(
        f'<div class="tile{" bad" if short and name.startswith("disk") else ""}"><b>{value}</b>'
        f"<span>{name}</span><small>{note}</small></div>"
        for name, value, note in tiles
    )


def _reasons(figures: Figures) -> str:
    if not figures.rejected:
        return "<p>No try was rejected.</p>"
    most = max(figures.rejected.values())
    rows = [
        f"<tr><th>{escape(code)}</th><td>{escape(REASONS.get(code, ''))}</td>"
        f"<td class=n>{_count(n)}</td><td class=n>{n / figures.tries:.2%}</td>"
        f"<td class=bar>{_bar(n / most)}</td><td class=n>{_count(figures.missing[code])}</td></tr>"
        for code, n in figures.rejected.most_common()
    ]
    head = "<tr><th>reason<th><th class=n>tries<th class=n>of all<th><th class=n>left missing</tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _groups(figures: Figures) -> str:
    rows = []
    for name, group in sorted(figures.groups.items(), key=lambda item: (-item[1].asked, item[0])):
        share = group.pictures / group.asked if group.asked else 1.0
        tries = group.tries / group.pictures if group.pictures else math.nan
        rows.append(
            f"<tr><th>{escape(name) or 'no group'}</th><td class=n>{_count(group.asked)}</td>"
            f"<td class=n>{_count(group.pictures)}</td><td class=bar>{_bar(share)}</td>"
            f"<td class=n>{_count(group.missing)}</td>"
            f"<td class=n>{'–' if math.isnan(tries) else f'{tries:.2f}'}</td></tr>"
        )
    head = "<th>group<th class=n>asked<th class=n>pictures<th><th class=n>missing<th class=n>tries a picture"
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _bar(share: float) -> str:
    return f'<i style="width:{100 * min(share, 1):.1f}%"></i>'


def _histograms(figures: Figures) -> str:
    limits: dict[str, list[tuple[str, float]]] = {}
    for score, threshold, _ in RULES.values():
        limit = figures.options.get(f"filters.{threshold}")
        if limit is not None:
            limits.setdefault(score, []).append((threshold, float(limit)))
    return "".join(
        _histogram(name, values, figures.refused.get(name, np.empty(0, np.float32)), limits.get(name, []))
        for name, values in figures.accepted.items()
    )


def _histogram(
    name: str,
    accepted: NDArray[np.float32],
    refused: NDArray[np.float32],
    limits: list[tuple[str, float]],
) -> str:
    """Stacked: pictures below, rejected tries above them; the thresholds that lie in sight as lines."""
    everything = np.concatenate([accepted, refused])
    low, high = (float(v) for v in np.percentile(everything, (0.1, 99.9)))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    kept, lost = (np.histogram(v.clip(low, high), edges)[0] for v in (accepted, refused))
    top = max(1, int((kept + lost).max()))
    step = _WIDTH / _BINS
    bars = []
    for i in range(_BINS):
        y = _HEIGHT
        for count, kind in ((kept[i], "kept"), (lost[i], "lost")):
            height = _HEIGHT * count / top
            y -= height
            if count:
                bars.append(
                    f"<rect class={kind} x={i * step + 0.5:.1f} y={y:.1f} width={step - 1:.1f} "
                    f"height={max(height, 0.5):.1f} />"
                )
        title = f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {kept[i]} pictures, {lost[i]} rejected"
        bars.append(
            f"<rect class=hit x={i * step:.1f} y=0 width={step:.1f} height={_HEIGHT}>"
            f"<title>{title}</title></rect>"
        )
    lines = [
        f"<line x1={x:.1f} x2={x:.1f} y1=-4 y2={_HEIGHT}><title>{text} {limit:g}</title></line>"
        for text, limit in limits
        if 0 <= (x := (limit - low) / (high - low) * _WIDTH) <= _WIDTH
    ]
    named = ", ".join(f"{text} {limit:g}" for text, limit in limits)
    return (
        f"<figure><figcaption><b>{escape(name)}</b> <small>median {np.median(everything):.3g}"
        f"{'; ' + escape(named) if named else ''}</small></figcaption>"
        f'<svg viewBox="0 -6 {_WIDTH} {_HEIGHT + 22}">{"".join(bars)}{"".join(lines)}'
        f"<text x=0 y={_HEIGHT + 13}>{low:.3g}</text>"
        f"<text x={_WIDTH} y={_HEIGHT + 13} text-anchor=end>{high:.3g}</text></svg></figure>"
    )


def _speed(figures: Figures) -> str:
    if not figures.speed or not figures.tries:
        return "<p>No shard is finished yet.</p>"
    parts = ", ".join(f"{k} {v / figures.tries:.3g} s" for k, v in figures.seconds.items())
    # Of many shards, means over equal stretches.
    bins = np.array_split(np.array(figures.speed), min(len(figures.speed), 2 * _BINS))
    heights = np.array([b[:, 1].mean() for b in bins])
    step = 2 * _WIDTH / len(bins)
    bars = [
        f"<rect class=kept x={i * step + 0.5:.1f} y={_HEIGHT * (1 - h / heights.max()):.1f} "
        f"width={max(step - 1, 0.5):.1f} height={_HEIGHT * h / heights.max():.1f}>"
        f"<title>from shard {int(b[0, 0])}: {h:.3g} s a try</title></rect>"
        for i, (b, h) in enumerate(zip(bins, heights, strict=True))
    ]
    return (
        f"<p>A try takes {parts}. Drawing and finishing (matte, filters, encoding) overlap; wall is the time "
        "from one batch to the next.</p>"
        "<figure class=wide><figcaption>"
        f"<small>wall seconds a try by shard, at most {heights.max():.3g}</small></figcaption>"
        f'<svg viewBox="0 0 {2 * _WIDTH} {_HEIGHT}">{"".join(bars)}</svg></figure>'
    )


def _thumbnail(shown: Shown) -> str:
    with Image.open(io.BytesIO(shown.png), formats=("PNG",)) as image:
        small = image.convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=82)
    data = b64encode(stream.getvalue()).decode("ascii")
    text = escape(str(shown.record.get("prompt", "")))
    name = escape(str(shown.record.get("noun") or shown.record.get("id", "")))
    return (
        f'<figure class=picture title="{text}"><img alt="{text}" src="data:image/webp;base64,{data}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _made(figures: Figures) -> str:
    rows = [
        f"<tr><th>{escape(key)}</th><td>{escape(value) or 'not told'}</td><td class=n>{_count(n)}</td></tr>"
        for key, counts in figures.made.items()
        for value, n in counts.most_common()
    ]
    return f"<table><tr><th><th><th class=n>pictures</tr>{''.join(rows)}</table>"


def _count(number: float) -> str:
    return f"{round(number):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _bytes(number: float | None) -> str:
    if number is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _duration(hours: float | None) -> str:
    if hours is None:
        return "–"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
