"""Motion in .asf and .amc files, by hand and as CMU lays them out."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from dd3g.command.run import make_app
from dd3g.errors import UserError
from dd3g.pose.data.acclaim import read_amc
from dd3g.pose.data.motion_files import load_motion
from dd3g.pose.train import train_command


def asf():
    """CMU's layout with straight limbs; the left arm's axis frame is turned to show that it matters."""
    bones = [
        ("lhipjoint", "1 0 0", 2, "0 0 0", ""), ("lfemur", "0 -1 0", 8, "0 0 0", "rx ry rz"),
        ("ltibia", "0 -1 0", 8, "0 0 0", "rx"), ("rhipjoint", "-1 0 0", 2, "0 0 0", ""),
        ("rfemur", "0 -1 0", 8, "0 0 0", "rx ry rz"), ("rtibia", "0 -1 0", 8, "0 0 0", "rx"),
        ("lowerback", "0 1 0", 3, "0 0 0", "rx ry rz"), ("upperback", "0 1 0", 3, "0 0 0", ""),
        ("thorax", "0 1 0", 3, "0 0 0", ""), ("upperneck", "0 1 0", 2, "0 0 0", ""),
        ("head", "0 1 0", 3, "0 0 0", ""), ("lclavicle", "1 0 0", 3, "0 0 0", ""),
        ("lhumerus", "1 0 0", 5, "0 0 90", "rx"), ("lradius", "1 0 0", 4, "0 0 0", "rx"),
        ("rclavicle", "-1 0 0", 3, "0 0 0", ""), ("rhumerus", "-1 0 0", 5, "0 0 0", "rx ry rz"),
        ("rradius", "-1 0 0", 4, "0 0 0", "rx"),
    ]  # fmt: skip
    data = ""
    for i, (name, direction, length, axis, dof) in enumerate(bones, 1):
        data += f"  begin\n     id {i}\n     name {name}\n     direction {direction}\n     length {length}\n"
        data += f"     axis {axis}  XYZ\n" + (f"    dof {dof}\n" if dof else "") + "  end\n"
    tree = (
        "root lhipjoint rhipjoint lowerback,lhipjoint lfemur,lfemur ltibia,rhipjoint rfemur,rfemur rtibia,"
        "lowerback upperback,upperback thorax,thorax upperneck lclavicle rclavicle,upperneck head,"
        "lclavicle lhumerus,lhumerus lradius,rclavicle rhumerus,rhumerus rradius"
    )
    lines = "".join(f"    {line}\n" for line in tree.split(","))
    return (
        "# AST/ASF file\n:version 1.10\n:name person\n:units\n  mass 1.0\n  length 0.45\n  angle deg\n"
        ":documentation\n   made for a test\n:root\n   order TX TY TZ RX RY RZ\n   axis XYZ\n"
        f"   position 0 0 0\n   orientation 0 0 0\n:bonedata\n{data}:hierarchy\n  begin\n{lines}  end\n"
    )


AMC = """#!OML:ASF person.ASF
:FULLY-SPECIFIED
:DEGREES
1
root 0 17 0 0 0 0
lowerback 0 0 0
lfemur 0 0 0
ltibia 0
rfemur 0 0 0
rtibia 0
lhumerus 0
lradius 0
rhumerus 0 0 0
rradius 0
2
root 1 17 2 0 90 0
lowerback 0 0 0
lfemur 0 0 0
ltibia 90
rfemur 90 0 90
rtibia 0
lhumerus 90
lradius 0
rhumerus 0 0 0
rradius 0
"""


def test_amc_by_hand(tmp_path):
    (tmp_path / "p.asf").write_text(asf())
    (tmp_path / "p.amc").write_text(AMC)
    motion = read_amc(tmp_path / "p.asf", tmp_path / "p.amc")
    unit = 0.0254 / 0.45
    assert motion.fps == 120 and motion.root[0].tolist() == pytest.approx([0, 17 * unit, 0])
    rest = motion.joints[0] / unit
    expected = {1: [-2, 0, 0], 3: [-2, -16, 0], 4: [2, 0, 0], 7: [0, 6, 0], 8: [0, 9, 0], 10: [0, 14, 0],
                11: [3, 9, 0], 12: [8, 9, 0], 13: [12, 9, 0], 16: [-12, 9, 0]}  # fmt: skip
    for joint, place in expected.items():
        torch.testing.assert_close(rest[joint], torch.tensor(place).float(), atol=1e-4, rtol=0)
    # Undo the root's turn of 90 degrees about y, (x, y, z) -> (z, y, -x), to read the second frame.
    x, y, z = (motion.joints[1] / unit).unbind(-1)
    bent = torch.stack([-z, y, x], -1)
    expected = {
        6: [2, -8, -8],  # the left shin swings from -y to -z
        # The right thigh turns about x first, -y to -z, and then about z, which leaves -z alone.
        2: [-2, 0, -8],
        # The arm turns about its own x, the world's y in its axis frame: +x goes to -z.
        12: [3, 9, -5],
    }
    for joint, place in expected.items():
        torch.testing.assert_close(bent[joint], torch.tensor(place).float(), atol=1e-4, rtol=0)


def test_a_take_of_cmu_finds_its_skeleton_and_can_be_learnt_from(tmp_path):
    (tmp_path / "07.asf").write_text(asf())
    (tmp_path / "08.asf").write_text(asf().replace("length 8", "length 9"))
    (tmp_path / "07_01.amc").write_text(AMC)
    found, want = load_motion(tmp_path / "07_01.amc"), read_amc(tmp_path / "07.asf", tmp_path / "07_01.amc")
    assert torch.equal(found.joints, want.joints) and torch.equal(found.root, want.root)
    words = ["lifter", "--motion", tmp_path / "07_01.amc", "-o", tmp_path / "run", "--steps", 1]
    result = CliRunner().invoke(make_app(train_command), [str(w) for w in words])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ltibia 90", "ltibia"), "line 19: ltibia needs 1 values"),
        (("rradius 0\n2", "2"), "rradius has 1 rows for 2 frames"),
        (("ltibia 90", "tail 90"), "no bone 'tail'"),
        (("ltibia 90", "ltibia x"), "line 19"),
    ],
)
def test_bad_amc_is_told(tmp_path, change, message):
    (tmp_path / "p.asf").write_text(asf())
    (tmp_path / "p.amc").write_text(AMC.replace(*change, 1))
    with pytest.raises(UserError, match=message):
        read_amc(tmp_path / "p.asf", tmp_path / "p.amc")


def test_bad_asf_is_told(tmp_path):
    (tmp_path / "p.amc").write_text(AMC)
    (tmp_path / "p.asf").write_text(asf().split(":hierarchy")[0])
    with pytest.raises(UserError, match="no section :hierarchy"):
        read_amc(tmp_path / "p.asf", tmp_path / "p.amc")
    for line, child in (("root lhipjoint", "lhipjoint"), ("lfemur root", "root")):
        before, end, _ = asf().rpartition("  end\n")
        (tmp_path / "p.asf").write_text(f"{before}    {line}\n{end}")  # names a bone again
        with pytest.raises(
            UserError, match=f"{child} comes before its parent .*, or twice, in the hierarchy"
        ):
            read_amc(tmp_path / "p.asf", tmp_path / "p.amc")
    (tmp_path / "p.asf").write_text(asf().replace("     name lradius\n", ""))
    with pytest.raises(UserError, match="cannot be read as an ASF file.*name"):
        read_amc(tmp_path / "p.asf", tmp_path / "p.amc")
