"""The command `dd3g`: every command of the project by name, imported when it is asked for."""

from __future__ import annotations

import sys

from dd3g import __version__

# Name -> module with main(argv) -> exit code, and a line about it. Modules on higher floors are only named.
COMMANDS = {
    "infer": ("dd3g.infer", "pictures of objects to 3D Gaussians"),
    "serve": ("dd3g.serve.__main__", "the same over HTTP, with a page to drop pictures on"),
    "pose": ("dd3g.pose.__main__", "photos and videos of people to 3D poses"),
    "convert": ("dd3g.convert", "a splat file to another format, or to a mesh"),
    "view": ("dd3g.view", "a splat file in the browser"),
    "turntable": ("dd3g.turntable", "a splat file to a video, an animation or pictures"),
    "info": ("dd3g.info", "what is in a splat file"),
    "models": ("dd3g.models", "fetch small pretrained files once; list them"),
    "data": ("data_gen.__main__", "make training pictures: from prompts, from pictures, from meshes"),
    "simulate": ("distill.simulate", "pictures to the quadruples of a teacher"),
    "train": ("distill.train", "distil a teacher into a generator"),
    "claim": ("distill.claim", "compare students with and without a teacher's quadruples, at equal compute"),
    "recipe": ("distill.recipe", "meshes or quadruples to weights, card, table and sheet, in given minutes"),
    "train-teacher": ("distill.train_teacher", "train a small multi-view teacher"),
    "train-shape": ("distill.train_shape", "train a network that predicts the volume of a pictured object"),
    "train-elevation": (
        "distill.train_elevation",
        "train a network that estimates a picture's elevation",
    ),
    "train-pose": ("dd3g.pose.train", "train the networks of the pose methods"),
    "evaluate": ("distill.evaluation.__main__", "compare generators with the true views of objects"),
    "interpolate": ("distill.interpolate", "interpolate between two noises, and show what the noise decides"),
    "benchmark": ("dd3g.benchmark.__main__", "time inference, rasteriser and poses on this machine"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        from dd3g.command.run import dispatch, say
    except KeyboardInterrupt:  # while Python reads its own files
        print("stopped", file=sys.stderr)
        return 130
    words = sys.argv[1:] if argv is None else argv
    if words == ["--version"]:
        say(f"dd3g {__version__}")
        return 0
    about = "Pictures to 3D Gaussians, and what makes such a generator."
    return dispatch(COMMANDS, words, "dd3g", about, hint="; pictures go to `dd3g infer`")


if __name__ == "__main__":
    sys.exit(main())
