"""Pictures as tests draw them: all of a figure, but once, small, and not laid out."""

from pathlib import Path

from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cft.system.files import atomic_write, write_text


def draw_small(figure: Figure, folder: Path, name: str) -> list[Path]:
    """What `figures.save` does, in a tenth of its time: pictures are a third of a tiny job's."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    figure.set_layout_engine("none")
    figure.set_dpi(20)
    with atomic_write(png) as part:
        FigureCanvasAgg(figure).print_png(part, metadata={"Software": None})
    pyplot.close(figure)
    write_text(svg, "<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>\n")
    return [svg, png]
