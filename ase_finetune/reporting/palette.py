"""Colours that follow light and dark, and that are told apart with any kind of colour vision.

Charts are drawn in the colours of the light theme. In the page each of them is replaced by a CSS variable of the same
name, so every colour here is used for one thing only. Blue is always the target, orange what must be kept, grey the
untouched model. Better and worse are green and purple, which colour-blind readers tell apart, and carry a sign as well.
"""

from __future__ import annotations

#: name: (light, dark)
COLORS: dict[str, tuple[str, str]] = {
    "ink": ("#1b2026", "#e7eaed"),
    "muted": ("#59636e", "#a3adb7"),
    "grid": ("#dde2e7", "#323a42"),
    "surface": ("#fefefe", "#15191d"),
    "raised": ("#f5f7f9", "#1d2227"),
    "target": ("#0b66b2", "#62b0f4"),
    "kept": ("#c25408", "#f39b52"),
    "before": ("#8b949e", "#77828d"),
    "train": ("#6a7580", "#98a3ae"),
    "third": ("#0d8070", "#45c4ae"),
    "fourth": ("#9a3f92", "#d98fd2"),
    "better": ("#17794f", "#4fc48c"),
    "worse": ("#8f3a98", "#d592e2"),
}

#: The colours that charts are drawn in.
LIGHT = {name: light for name, (light, _) in COLORS.items()}


def with_variables(svg: str) -> str:
    """A picture whose colours of the light theme are CSS variables instead."""
    for name, color in LIGHT.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def css_variables(dark: bool) -> str:
    """Declarations of all colours; ``<name>-rgb`` takes an opacity, as in ``rgba(var(--better-rgb), 0.5)``."""
    lines = []
    for name, pair in COLORS.items():
        color = pair[dark]
        red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
        lines.append(f"--{name}:{color};--{name}-rgb:{red},{green},{blue};")
    return "".join(lines)
