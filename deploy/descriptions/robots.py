"""Which robot type is described where: repository, file, which joints are commanded, which of them is the gripper.

Only what a description does not say by itself stands here. Which end of a gripper's range opens it follows from the
way that its joint moves in the same description (a finger that moves away from the middle, a knuckle that folds in);
where that is not plain, the joint is commanded like any other and no gripper is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OpensAt = Literal["upper", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A robot whose joints and limits a URDF, xacro or MJCF file states."""

    robot_type: str
    title: str
    repository: str
    path: str
    #: Regular expression that a joint's whole name must match; joints keep the order of the file.
    joints: str
    #: Of xacro files.
    arguments: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    #: What is expanded instead of `path` where that includes packages which are not public: its own macros, called.
    assembly: str = ""
    #: Files that `others` have under a newer or older name: as included -> as they are, from the package's folder on.
    renamed: Mapping[str, str] = field(default_factory=dict)
    #: Joints that are grippers (whole names), and which end of their range opens them.
    grippers: tuple[str, ...] = ()
    opens_at: OpensAt = "upper"
    #: Wheels have no position to command: their speed is the first action space, and the only one.
    speeds_only: bool = False
    #: Names are written as "<arm>_<joint>" for each of these; the description is of one arm.
    arms: tuple[str, ...] = ()


_ABB, _ABB_OLD = "ros-industrial/abb_experimental", "ros-industrial/abb"
_LBR = "lbr-stack/lbr_fri_ros2_stack"
_KORTEX = "Kinovarobotics/ros_kortex"
_XARM = "xArm-Developer/xarm_ros"
_INTERBOTIX = "Interbotix/interbotix_ros_manipulators"
_UR = "UniversalRobots/Universal_Robots_ROS2_Description"
_SO = "TheRobotStudio/SO-ARM100"


_NO_OFFSETS = " ".join(f'arm_{i}_offset="0"' for i in range(1, 8))
_TIAGO = f"""<robot xmlns:xacro="http://www.ros.org/wiki/xacro" name="tiago">
  <xacro:include filename="$(find tiago_description)/urdf/torso/torso.urdf.xacro"/>
  <xacro:include filename="$(find tiago_description)/urdf/head/head.urdf.xacro"/>
  <xacro:include filename="$(find tiago_description)/urdf/arm/arm.urdf.xacro"/>
  <xacro:include filename="$(find pal_gripper_description)/urdf/gripper.urdf.xacro"/>
  <xacro:property name="head_eps" value="0"/>
  <xacro:tiago_torso name="torso" parent="base_link"/>
  <xacro:head_1 name="head_1" parent="torso_lift_link"/>
  <xacro:head_2 name="head_2" parent="head_1_link"/>
  <xacro:tiago_arm name="arm" parent="torso_lift_link" wrist_model="wrist-2017" has_ft_sensor="false" reflect="1"
    tiago_dual="-1" {_NO_OFFSETS} no_safety_eps="true"><origin xyz="0 0 0"/></xacro:tiago_arm>
  <xacro:pal_gripper name="gripper" parent="arm_tool_link"><origin xyz="0 0 0"/></xacro:pal_gripper>
</robot>"""


def _franka(name: str, robot_type: str, title: str) -> Description:
    return Description(
        robot_type=robot_type,
        title=title,
        repository="frankaemika/franka_description",
        path=f"robots/{name}/{name}.urdf.xacro",
        arguments={"hand": "true"},
        joints=rf"{name}_(joint\d|finger_joint1)",
        grippers=(f"{name}_finger_joint1",),
    )


def _universal(name: str) -> Description:
    return Description(
        robot_type=name,
        title=f"Universal Robots {name.upper().replace('E', 'e')}",
        repository=_UR,
        path="urdf/ur.urdf.xacro",
        arguments={"name": "ur", "ur_type": name},
        joints=r".*_joint",
    )


def _abb(robot_type: str, variant: str, title: str) -> Description:
    return Description(
        robot_type=robot_type,
        title=title,
        repository=_ABB,
        path=f"{robot_type}_support/urdf/{variant}.xacro",
        others=(_ABB_OLD,),
        joints=r"joint_\d",
    )


def _kuka(name: str, robot_type: str, title: str) -> Description:
    return Description(
        robot_type=robot_type,
        title=title,
        repository=_LBR,
        path=f"lbr_description/urdf/{name}/{name}.xacro",
        joints=r"lbr_A\d",
    )


def _xarm(robot_type: str, title: str, dof: int, *, lite: bool = False) -> Description:
    return Description(
        robot_type=robot_type,
        title=title,
        repository=_XARM,
        path="xarm_description/urdf/xarm_device.urdf.xacro",
        arguments={"dof": str(dof), **({"robot_type": "lite"} if lite else {"add_gripper": "true"})},
        joints=r"joint\d" if lite else r"(joint\d|drive_joint)",
        grippers=() if lite else ("drive_joint",),
        opens_at="lower",
    )


DESCRIPTIONS: tuple[Description, ...] = (
    _franka("fer", "franka_panda", "Franka Emika Robot (Panda) with Franka Hand"),
    _franka("fr3", "franka_fr3", "Franka Research 3 with Franka Hand"),
    *(_universal(name) for name in ("ur3", "ur3e", "ur5", "ur5e", "ur10", "ur10e", "ur16e")),
    Description(
        robot_type="abb_yumi",
        title="ABB YuMi IRB 14000 with servo grippers",
        repository="OrebroUniversity/yumi",
        path="yumi_description/urdf/yumi.urdf",
        joints=r"yumi_joint_\d_[lr]|gripper_[lr]_joint",
        grippers=("gripper_r_joint", "gripper_l_joint"),
    ),
    _abb("abb_irb1200", "irb1200_5_90", "ABB IRB 1200-5/0.9"),
    _abb("abb_irb1600", "irb1600_6_12", "ABB IRB 1600-6/1.2"),
    _abb("abb_irb6700", "irb6700_200_260", "ABB IRB 6700-200/2.60"),
    _kuka("iiwa7", "kuka_iiwa7", "KUKA LBR iiwa 7 R800"),
    _kuka("iiwa14", "kuka_iiwa14", "KUKA LBR iiwa 14 R820"),
    _kuka("med14", "kuka_lbr_med", "KUKA LBR Med 14 R820"),
    Description(
        robot_type="kinova_gen3",
        title="Kinova Gen3, 7 joints, with Robotiq 2F-85",
        repository=_KORTEX,
        path="kortex_description/robots/gen3_robotiq_2f_85.xacro",
        joints=r"joint_\d|finger_joint",
        grippers=("finger_joint",),
        opens_at="lower",
    ),
    Description(
        robot_type="kinova_gen3_lite",
        title="Kinova Gen3 lite with its two-finger gripper",
        repository=_KORTEX,
        path="kortex_description/robots/gen3_lite_gen3_lite_2f.xacro",
        joints=r"joint_\d|right_finger_bottom_joint",
        grippers=("right_finger_bottom_joint",),
    ),
    Description(
        robot_type="kinova_jaco",
        title="Kinova Jaco 2, 7 joints, spherical wrist, three fingers (j2s7s300)",
        repository="Kinovarobotics/kinova-ros",
        path="kinova_description/urdf/j2s7s300_standalone.xacro",
        joints=r"j2s7s300_joint_(\d|finger_\d)",
        grippers=tuple(f"j2s7s300_joint_finger_{i}" for i in (1, 2, 3)),
        opens_at="lower",
    ),
    Description(
        robot_type="sawyer",
        title="Rethink Sawyer",
        repository="RethinkRobotics/sawyer_robot",
        path="sawyer_description/urdf/sawyer_base.urdf.xacro",
        joints=r"right_j\d",
    ),
    Description(
        robot_type="baxter",
        title="Rethink Baxter, both arms",
        repository="RethinkRobotics/baxter_common",
        path="baxter_description/urdf/baxter.urdf",
        joints=r"(left|right)_[sew]\d",
    ),
    _xarm("xarm5", "UFACTORY xArm 5 with gripper", 5),
    _xarm("xarm6", "UFACTORY xArm 6 with gripper", 6),
    _xarm("xarm7", "UFACTORY xArm 7 with gripper", 7),
    _xarm("lite6", "UFACTORY Lite 6", 6, lite=True),
    Description(
        robot_type="fetch",
        title="Fetch: torso, arm and gripper",
        repository="fetchrobotics/fetch_ros",
        path="fetch_description/robots/fetch.urdf",
        joints=r"(torso_lift|shoulder_(pan|lift)|upperarm_roll|elbow_flex|forearm_roll|wrist_(flex|roll)"
        r"|[lr]_gripper_finger)_joint",
        grippers=("r_gripper_finger_joint", "l_gripper_finger_joint"),
    ),
    Description(
        robot_type="freight",
        title="Freight: the two driven wheels",
        repository="fetchrobotics/fetch_ros",
        path="fetch_description/robots/freight.urdf",
        joints=r"[lr]_wheel_joint",
        speeds_only=True,
    ),
    Description(
        robot_type="toyota_hsr",
        title="Toyota HSR: head, arm and hand",
        repository="ToyotaResearchInstitute/hsr_description",
        path="robots/hsrb4s.urdf",
        joints=r"(head_(pan|tilt)|arm_(lift|flex|roll)|wrist_(flex|roll)|hand_motor)_joint",
        grippers=("hand_motor_joint",),
    ),
    Description(
        robot_type="pr2",
        title="PR2: torso, both arms and grippers",
        repository="PR2/pr2_common",
        path="pr2_description/robots/pr2.urdf.xacro",
        joints=r"torso_lift_joint|[lr]_(shoulder_(pan|lift)|upper_arm_roll|elbow_flex|forearm_roll|wrist_(flex|roll)"
        r"|gripper)_joint",
        grippers=("r_gripper_joint", "l_gripper_joint"),
    ),
    Description(
        robot_type="tiago",
        title="PAL TIAGo: torso, head, arm and gripper",
        repository="pal-robotics/tiago_robot",
        path="tiago_description/robots/tiago.urdf.xacro",
        others=("pal-robotics/pal_gripper", "pal-robotics/pal_urdf_utils"),
        assembly=_TIAGO,
        renamed={"urdf/deg_to_rad.urdf.xacro": "urdf/deg_to_rad.xacro"},
        joints=r"torso_lift_joint|head_\d_joint|arm_\d_joint|gripper_(left|right)_finger_joint",
        grippers=("gripper_left_finger_joint", "gripper_right_finger_joint"),
    ),
    Description(
        robot_type="berkeley_blue",
        title="Berkeley Blue, right arm, with gripper",
        repository="berkeleyopenarms/blue_core",
        path="blue_descriptions/robots/blue_right_v2.urdf.xacro",
        joints=r"right_(base_roll|(shoulder|elbow|wrist)_(lift|roll)|gripper)_joint",
    ),
    Description(
        robot_type="stanford_pupper",
        title="Stanford Pupper, twelve leg joints (v2a)",
        repository="jietan/puppersim",
        path="puppersim/data/pupper_v2a.urdf",
        joints=r"(left|right)(Front|Rear)(|Lower|Upper)LegMotor",
    ),
    Description(
        robot_type="so100",
        title="SO-100 follower arm",
        repository=_SO,
        path="Simulation/SO100/so100.urdf",
        joints=r".*",
        grippers=("gripper",),
    ),
    Description(
        robot_type="so101",
        title="SO-101 follower arm (new calibration)",
        repository=_SO,
        path="Simulation/SO101/so101_new_calib.urdf",
        joints=r".*",
        grippers=("gripper",),
    ),
    Description(
        robot_type="koch",
        title="Koch low-cost follower arm",
        repository="AlexanderKoch-Koch/low_cost_robot",
        path="simulation/low_cost_robot/low_cost_robot.xml",
        joints=r"joint\d",
        grippers=("joint5",),
        opens_at="lower",
    ),
    Description(
        robot_type="aloha",
        title="ALOHA: two ViperX 300 6DOF follower arms",
        repository=_INTERBOTIX,
        path="interbotix_ros_xsarms/interbotix_xsarm_descriptions/urdf/vx300s.urdf.xacro",
        arguments={"robot_name": "vx300s"},
        joints=r"waist|shoulder|elbow|forearm_roll|wrist_(angle|rotate)|left_finger",
        grippers=("left_finger",),
        arms=("left", "right"),
    ),
    Description(
        robot_type="widowx",
        title="WidowX 250 6DOF",
        repository=_INTERBOTIX,
        path="interbotix_ros_xsarms/interbotix_xsarm_descriptions/urdf/wx250s.urdf.xacro",
        arguments={"robot_name": "wx250s"},
        joints=r"waist|shoulder|elbow|forearm_roll|wrist_(angle|rotate)|left_finger",
        grippers=("left_finger",),
    ),
    Description(
        robot_type="google_robot",
        title="Google Robot (Everyday Robots): arm and fingers, as SimplerEnv describes it",
        repository="simpler-env/ManiSkill2_real2sim",
        path="mani_skill2_real2sim/assets/descriptions/googlerobot_description/"
        "google_robot_meta_sim_fix_fingertip.urdf",
        joints=r"joint_(torso|shoulder|bicep|elbow|forearm|wrist|gripper|finger_(right|left))",
        grippers=("joint_finger_right", "joint_finger_left"),
        opens_at="lower",
    ),
    Description(
        robot_type="unitree_g1",
        title="Unitree G1, 29 joints, without hands",
        repository="unitreerobotics/unitree_ros",
        path="robots/g1_description/g1_29dof_rev_1_0.urdf",
        joints=r".*_joint",
    ),
)
