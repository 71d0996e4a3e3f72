"""A skinned .glb as .fbx, by Blender, which runs in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from dd3g.errors import UserError
from dd3g.io.atomic import replacing

SCRIPT = """
import sys
import bpy
source, target, fps, frames = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.render.fps = max(1, round(fps))
scene.render.fps_base = scene.render.fps / fps
bpy.ops.import_scene.gltf(filepath=source)
for one in scene.objects:  # the importer adds a mesh that shows what bones look like
    one.select_set('Armature' in (one.name, one.parent and one.parent.name))
if frames > 1:
    scene.frame_start, scene.frame_end = (round(n) for n in bpy.data.actions[0].frame_range)
bpy.ops.export_scene.fbx(
    filepath=target, use_selection=True, add_leaf_bones=False, bake_anim=frames > 1,
    bake_anim_use_all_actions=False, bake_anim_use_nla_strips=False, bake_anim_simplify_factor=0.0,
)
"""


def check_blender() -> None:
    """Raise UserError where the Blender module is not installed."""
    if importlib.util.find_spec("bpy") is None:
        raise UserError(
            "--export fbx needs Blender as a module: pip install 'dd3g[fbx]', or use glb, which Blender reads"
        )


def save_fbx(glb: str | Path, path: str | Path, fps: float, frames: int) -> Path:
    """Convert a body of so many frames that `skinned.save_glb` wrote; the .fbx has a key for each of them.

    Raises:
        UserError: Blender is not there, or fails.
    """
    check_blender()
    with replacing(path) as partial:
        call = [sys.executable, "-c", SCRIPT, str(glb), str(partial), repr(fps), str(frames)]
        done = subprocess.run(call, capture_output=True, text=True, errors="replace")
        if not partial.is_file():
            reason = ([*done.stderr.strip().splitlines()] or ["no reason given"])[-1]
            raise UserError(f"Blender could not write {path}: {reason}")
    return Path(path)
