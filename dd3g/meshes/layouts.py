"""Objects of public data sets, found in the folders and archives that people have of them."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dd3g.errors import UserError
from dd3g.meshes.mesh import Mesh, load_mesh, missing_materials

MESHES = (".glb", ".obj", ".npz")
RING = tuple(f"{k:03d}.png" for k in range(16))


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps the files of an object."""

    name: str  # what `--layout` calls it
    title: str  # what people call it
    # Regular expression of an object's folder, from any folder above it on; its group `id` names the object,
    # unless `files` has it
    root: str
    # Regular expressions below the root; the first is the one that is read, and all must be there
    files: tuple[str, ...]
    holds: str  # "mesh" or "views"
    up: str  # "y" or "z", the axis of the files that points up
    shown: str  # the layout in words


ANY = r"(?P<id>[^/]+)"
RENDERS = r"(?:render|blender_renders\w*)"  # folders in an object's own
# The first that fits wins. GSO and YCB are z up, as their robotics tools want; OBJ and glTF are y up by
# custom, and worlds of Blender and NeRF are z up.
LAYOUTS = (
    Layout("gso", "Google Scanned Objects", ANY, (r"meshes/model\.obj", r"materials/textures/texture\.png"),
           "mesh", "z", "NAME/meshes/model.obj and NAME/materials/textures/texture.png"),
    Layout("gso-zip", "Google Scanned Objects (zipped)", r"", (rf"{ANY}\.zip",), "mesh", "z", "NAME.zip"),
    Layout("omniobject3d", "OmniObject3D (raw scans)", ANY, (r"Scan/Scan\.obj", r"Scan/Scan\.jpg"),
           "mesh", "y", "CATEGORY/NAME/Scan/Scan.obj and Scan.jpg"),
    Layout("ycb", "YCB", ANY, (r"google_16k/textured\.obj", r"google_16k/texture_map\.png"), "mesh", "z",
           "NAME/google_16k/textured.obj and texture_map.png"),
    Layout("toys4k", "Toys4K", ANY, (r"mesh\.obj",), "mesh", "y", "CATEGORY/NAME/mesh.obj"),
    Layout("abo", "Amazon Berkeley Objects", r"3dmodels/original/[^/]+", (rf"{ANY}\.glb",), "mesh", "y",
           "3dmodels/original/X/NAME.glb"),
    Layout("objaverse", "Objaverse", r"glbs/\d{3}-\d{3}", (r"(?P<id>[0-9a-f]{32})\.glb",), "mesh", "y",
           "glbs/000-000/UID.glb"),
    Layout("nerf", "pictures with transforms.json, as of NeRF, Blender and OmniObject3D's renders",
           rf"(?P<id>(?!{RENDERS}/)[^/]+)(?:/{RENDERS})?", (r"transforms(?:_test)?\.json",), "views", "z",
           "NAME/transforms.json"),
    Layout("cameras", "pictures with cameras.json", ANY, (r"cameras\.json",), "views", "y",
           "NAME/cameras.json"),
    Layout("zero123", "pictures with a .npy each, as of Zero-1-to-3 and EscherNet", ANY,
           (r"000\.npy",), "views", "z", "NAME/000.png and 000.npy"),
    Layout("syncdreamer", "GSO-30 as rendered by SyncDreamer", r"(?P<id>[^/]+?)(?:-gt)?",
           tuple(name.replace(".", r"\.") for name in RING), "views", "z", "NAME/000.png to 015.png"),
)  # fmt: skip
PLAIN = Layout("meshes", "meshes", "", (), "mesh", "y", f"any {' '.join(MESHES)}, at any depth")
NAMES = tuple(layout.name for layout in (*LAYOUTS, PLAIN))


@dataclass(frozen=True)
class FoundObject:
    """One object on disk."""

    id: str  # its name in tables; unique in a data set
    path: Path  # its mesh, its archive, or the file with its cameras
    layout: Layout  # of the data set
    style: str = "unknown"  # group for reports, from a manifest.csv; "unknown" without

    def mesh(self) -> Mesh:
        """Load it, y up and normalised as `load_mesh` does.

        Raises:
            ValueError: when it is not a mesh.
        """
        if self.path.suffix != ".zip":
            return _whole(self.path, self.layout.up)
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(self.path) as archive:
            archive.extractall(folder)
            (path, *_) = Path(folder).rglob("meshes/model.obj")
            return _whole(path, self.layout.up)

    def files(self) -> list[Path]:
        """What it is read from, so that a change is noticed: pictures and materials too."""
        if self.path.suffix.lower() in (".glb", ".npz", ".zip"):
            return [self.path]
        home = self.path.parent
        if self.layout.holds == "views":
            return sorted(p for p in home.rglob("*") if p.is_file())
        folders = (home, home.parent / "materials" / "textures")
        there = (p for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_file())
        return sorted(p for p in there if p == self.path or p.suffix.lower() not in MESHES)


def _whole(path: Path, up: str) -> Mesh:
    """A mesh with its colours: without them it would be scored as a grey one."""
    mesh = load_mesh(path, up)
    if lacking := missing_materials(path):
        raise ValueError(f"{path.name} names {', '.join(lacking)}, which is not there or cannot be read")
    return mesh


def find_objects(
    folder: Path, layout: str = "auto", wanted: Sequence[str] = ()
) -> tuple[list[FoundObject], dict[str, str]]:
    """The objects of a data set, sorted by id, and what is missing of those that are incomplete.

    Args:
        folder: of the data set, or one above it.
        layout: one of `NAMES`; "auto" finds out.
        wanted: ids; none for all.

    Returns:
        objects, and id -> reason of those that lack files or cannot be opened.

    Raises:
        UserError: no such folder or layout, no object, two of one name, or not all wanted ones.
    """
    if layout != "auto" and layout not in NAMES:
        raise UserError(f"no layout {layout!r}: choose auto or one of {', '.join(NAMES)}")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give that of a data set")
    found, missing = _search(folder, layout)
    by_id: dict[str, FoundObject] = {}
    for one in found:
        if (other := by_id.setdefault(one.id, one)) is not one:
            paths = f"{other.path} and {one.path}"
            raise UserError(f"two objects are called {one.id!r} ({paths}): give a folder with one of them")
    if not wanted:
        return found, missing
    if lacking := [name for name in wanted if name not in by_id]:
        reasons = [f"{name} ({missing[name]})" if name in missing else name for name in lacking]
        raise UserError(
            f"{folder} lacks {len(lacking)} of {len(wanted)} objects of the list: {', '.join(reasons)}"
        )
    return [one for one in found if one.id in set(wanted)], {}


def _search(folder: Path, layout: str) -> tuple[list[FoundObject], dict[str, str]]:
    """Objects of the first layout that fits, and what is missing of the others; else plain meshes."""
    walk = os.walk(folder, followlinks=True)
    names = (Path(at, name).relative_to(folder).as_posix() for at, _, names in walk for name in names)
    files = sorted(name for name in names if "/." not in f"/{name}")  # nothing hidden
    prefix = folder.resolve().as_posix().strip("/")  # the named folder may itself be one of the layout
    found: list[FoundObject] = []
    missing: dict[str, str] = {}
    strange: dict[str, str] = {}
    for entry in (entry for entry in LAYOUTS if layout in ("auto", entry.name)):
        found, missing = _fitting(entry, folder, prefix, files)
        if not found and layout == "auto" and entry.name == "gso-zip":
            strange, missing = missing, {}  # perhaps archives of something else
        if found or missing:
            break
    if not found and not missing and layout in ("auto", PLAIN.name):
        found = _plain(folder, files)
    unusable = {one.id: why for one in found if (why := _unusable(one))}
    missing = missing | unusable
    found = [one for one in found if one.id not in unusable]
    if not found:
        raise UserError(_nothing(folder, layout, missing or strange))
    styles = {key: row["style"] for key, row in read_rows(folder).items() if row.get("style")}
    return [replace(o, style=styles.get(o.id.rpartition("/")[2], o.style)) for o in found], missing


def _unusable(one: FoundObject) -> str:
    """Why an object that was found cannot be used; nothing of most."""
    try:
        one.id.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename its file or folder"
    if not os.access(one.path, os.R_OK):
        return f"{one.path} cannot be opened: it is a link to nothing, or only others may read it"
    return ""


def read_rows(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of manifest.csv in a folder of meshes or beside it, by id; none where there is none.

    Raises:
        UserError: when it is not UTF-8, or has no column `id`.
    """
    rows: dict[str, dict[str, str]] = {}
    with contextlib.suppress(UserError):  # one beside the folder may be about something else
        rows = _rows(folder.parent / "manifest.csv")
    return rows | _rows(folder / "manifest.csv")


def _rows(manifest: Path) -> dict[str, dict[str, str]]:
    if not manifest.is_file():
        return {}
    try:
        with open(manifest, newline="", encoding="utf-8-sig") as stream:  # Excel puts a BOM first
            table = csv.DictReader(stream)
            columns = list(table.fieldnames or [])
            if "id" not in columns:
                if not {"id", "style"} & set(re.split("[;\t,]", ",".join(columns))):
                    return {}  # about something else
                raise UserError(
                    f"{manifest} has the columns {columns}, none called id: its first line names them, with "
                    "commas between"
                )
            return {row["id"]: row for row in table}
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest} is not UTF-8 ({error.reason}): save it as UTF-8") from error


def _fitting(
    layout: Layout, folder: Path, prefix: str, files: list[str]
) -> tuple[list[FoundObject], dict[str, str]]:
    """Complete objects of one layout, and what is missing of the others."""
    root = f"(?P<root>{layout.root})/" if layout.root else ""
    have: dict[str, dict[int, tuple[str, Path]]] = {}  # an object's place -> number of the file -> id, path
    for k, part in enumerate(layout.files):
        pattern = re.compile(f"(?:.*/)?{root}{part}")
        for name in files:
            if match := pattern.fullmatch(f"{prefix}/{name}"):
                # Where the file names the object, each file is one.
                end = match.end("root") if "(?P<id>" in layout.root else len(match.string)
                have.setdefault(match.string[:end], {})[k] = (match["id"], folder / name)
    found, missing = [], {}
    for numbers in have.values():
        id = next(iter(numbers.values()))[0]
        lacking = [part for k, part in enumerate(layout.files) if k not in numbers]
        if layout.name == "gso-zip":
            lacking = _lacking(numbers[0][1])
        # Sixteen common names mean nothing alone.
        if layout.name == "syncdreamer" and len(lacking) > 8:
            continue
        if lacking:
            missing[id] = f"{layout.title}: it lacks {', '.join(p.replace(chr(92), '') for p in lacking)}"
        else:
            found.append(FoundObject(id, numbers[0][1], layout))
    return sorted(found, key=lambda o: o.id), missing


def _lacking(path: Path) -> list[str]:
    """What an archive of a scan does not hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        return [f"a whole archive ({error})"]
    wanted = next(layout for layout in LAYOUTS if layout.name == "gso").files
    return [part for part in wanted if not any(re.search(rf"(?:^|/){part}$", name) for name in names)]


def _plain(folder: Path, files: list[str]) -> list[FoundObject]:
    """Meshes, each called as its file, or as its folder where the file is called model."""
    paths = [Path(name) for name in files if Path(name).suffix.lower() in MESHES]
    found = []
    for path in paths:
        name = path.parent if path.stem == "model" and path.parent != Path() else path.with_suffix("")
        style = "shape" if path.suffix.lower() == ".npz" else "unknown"
        found.append(FoundObject(name.as_posix(), folder / path, PLAIN, style))
    return sorted(found, key=lambda o: o.id)


def _nothing(folder: Path, layout: str, missing: dict[str, str]) -> str:
    if missing:
        id, reason = next(iter(missing.items()))
        return f"{folder} holds no complete object ({len(missing)} are not): {id}, {reason}"
    if layout != "auto":
        (entry,) = [e for e in (*LAYOUTS, PLAIN) if e.name == layout]
        return f"{folder} is not a folder of {entry.title}: expected {entry.shown}"
    return (
        f"{folder} holds no objects: give a folder of meshes ({' '.join(MESHES)}, in any subfolder), "
        "of pictures with transforms.json or cameras.json, or one of "
        f"{', '.join(e.title for e in LAYOUTS if e.holds == 'mesh')}"
    )
