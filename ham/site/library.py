"""The library that draws the charts in the browser: Vega-Lite, in one file, from vl-convert-python.

It is not committed: `write` makes the file from the installed package, which holds the JavaScript itself, so
that no network is needed. Vega-Lite was chosen because a chart is data (JSON) that a test can read, it draws
SVG with labels for screen readers, its parameters are native inputs that work without a mouse, and one file
of 0.9 MB needs neither a server nor a network (plotly.js alone has 4.6 MB).
"""

from __future__ import annotations

from pathlib import Path

from ham.files import atomic_write_text, open_text

NAME = "vega-lite.js"
_EXPORT = "window.vegaEmbed = vegaEmbed;"


def write(folder: Path) -> Path:
    """Write the library into a folder unless the file of the installed version is there; returns its path.

    Raises:
        ModuleNotFoundError: vl-convert-python is not installed.
    """
    import vl_convert

    path = folder / NAME
    mark = f"// vl-convert-python {vl_convert.__version__}: vega-embed, vega-lite, vega (BSD-3-Clause)\n"
    if path.exists():
        with open_text(path, errors="replace") as file:
            if file.readline() == mark:
                return path
    bundle = vl_convert.javascript_bundle(_EXPORT)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, f"{mark}{bundle}\n")
    return path
