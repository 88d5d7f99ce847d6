"""HTML pages in one file, for a browser, the MLflow UI or a mail."""

from base64 import b64encode
from html import escape
from io import BytesIO

from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25em 0.8em; text-align: left; }
img { max-width: 100%; }
"""


def html_page(title: str, body: str) -> str:
    """Return a whole page; body is HTML."""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>'
        f"\n<style>{STYLE}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def as_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def html_image(png: bytes, description: str) -> str:
    """Return an image as HTML that contains its bytes."""
    return (
        f'<img alt="{escape(description)}" src="data:image/png;base64,{b64encode(png).decode()}">'
    )
