"""Charts of the pages: Vega-Lite specifications with one look in both color schemes.

Vega-Lite draws them in the browser as SVG. The colors of methods are CSS variables of assets/site.css, so
that a chart follows the color scheme without being drawn again; line styles and markers distinguish the
methods in gray. Names of fields and expressions are constants of this package: values of records enter as
data only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name: nothing is loaded from there
_AXIS = {
    **{"labelColor": "currentColor", "titleColor": "currentColor", "gridColor": "var(--grid)"},
    **{"domainColor": "var(--grid)", "tickColor": "var(--grid)", "labelFontSize": 12, "titleFontSize": 12},
    **{"titleFontWeight": "normal", "labelLimit": 260},
}
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "axis": _AXIS,
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "orient": "bottom", "columns": 2},
    "header": {"labelColor": "currentColor", "titleColor": "currentColor"},
    "title": {"color": "currentColor", "fontSize": 13, "fontWeight": "normal", "anchor": "start"},
    "view": {"stroke": None},
    "style": {"guide-label": {"fill": "currentColor"}, "guide-title": {"fill": "currentColor"}},
}


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Args:
        name: its `id` in the page: letters, digits and hyphens.
        title: heading, in words.
        description: what it shows, for readers who do not see it.
        spec: the Vega-Lite specification, without size, schema and config.
        height: in CSS pixels, reserved before the chart is drawn.
        head: names of the columns of `rows`.
        rows: the same numbers as a table, which every chart has below it.
    """

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]
    height: int = 260
    head: Sequence[str] = ()
    rows: Iterable[Sequence[object]] = ()

    @property
    def vega_lite(self) -> dict[str, Any]:
        """The complete specification; the width is that of the page."""
        size = {} if "vconcat" in self.spec else {"width": "container", "height": self.height - 60}
        return {
            "$schema": SCHEMA,
            "description": self.description,
            "autosize": {"type": "fit", "contains": "padding"},
            "config": _CONFIG,
            **size,
            **self.spec,
        }
