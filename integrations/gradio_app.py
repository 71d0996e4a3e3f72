"""A gradio page: a picture in, the turning object and its files out. `python integrations/gradio_app.py`.

Needs the extra `demo`. Gradio's analytics are off, and nothing is shared.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

from dd3g import Generator, UserError, load_image
from dd3g.io.viewer import save_viewer

WEIGHTS = os.environ.get("DD3G_WEIGHTS", "nano")
FORMATS = ("ply", "spz", "splat", "glb")
FRAME = (
    'title="The object" sandbox="allow-scripts allow-downloads" style="width: 100%; height: 480px; border: 0"'
)


@lru_cache(maxsize=1)
def generator() -> Generator:
    """The weights that the environment's DD3G_WEIGHTS names, "nano" without."""
    return Generator.from_pretrained(WEIGHTS)


def make(picture: str | None, elevation: float, seed: float | None) -> Iterator[tuple[str, list[str], str]]:
    """The page of the object in a frame, its files, and warnings.

    Args:
        picture: path of a picture that gradio has stored.
        elevation: degrees from which it looks down on the object.
        seed: a whole number of 0 or more; None, of an empty field, is 0.

    Raises:
        gr.Error: when the picture cannot be used.
    """
    if picture is None:
        raise gr.Error("give a picture first")
    try:
        found = load_image(picture)
        gaussians = generator().generate(found, seed=int(seed or 0), elevation=elevation)
        # Gradio copies the files when they are yielded; the folder goes after that.
        with tempfile.TemporaryDirectory(prefix="dd3g-demo-") as folder:
            files = [str(gaussians.save(Path(folder, f"object.{format}"))) for format in FORMATS]
            page = save_viewer(gaussians, Path(folder, "object.html"), title="object")
            shown = html.escape(page.read_text("utf-8"))
            frame = f'<iframe {FRAME} srcdoc="{shown}"></iframe>'
            yield frame, [*files, str(page)], "  \n".join(found.warnings)
    except UserError as error:
        raise gr.Error(str(error).replace(str(picture), "the picture")) from error


def make_demo() -> Any:
    """The page, not yet served."""
    with gr.Blocks(title="dd3g", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown("# dd3g\nA picture of one object in, 3D Gaussians out.")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"])
                elevation = gr.Slider(-20, 60, 10, step=5, label="Degrees from which the picture looks down")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                button = gr.Button("Make it", variant="primary")
            with gr.Column():
                shown, notes = gr.HTML(), gr.Markdown()
                files = gr.File(label="Files", file_count="multiple")
        given, made = [picture, elevation, seed], [shown, files, notes]
        gr.on([button.click, picture.upload], make, given, made, concurrency_limit=1, api_name="make")
    return demo.queue(max_size=16)


if __name__ == "__main__":
    make_demo().launch(share=False)
