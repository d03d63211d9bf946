"""Becomes another command that ends when its parent does, and that may run as another user.

Executed as a file by an isolated interpreter, so that it starts in some 15 ms and needs nothing but the standard
library:  python -I -S launch.py PARENT_PID SIGNAL UID COMMAND...      (UID -1: stay who we are)

The process id stays the same. On systems without PR_SET_PDEATHSIG the command just runs on; the next start finds it.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def _become(libc: ctypes.CDLL, uid: int) -> None:
    """Take on `uid`, but keep the right to pass through folders.

    Postgres refuses to run as root, and a checkout under root's home can be entered by nobody else. The alternative
    to keeping CAP_DAC_OVERRIDE would be to open up every folder above the data.
    """
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    bit = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable; low then high words
    if libc.capset(header, sets) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def main() -> None:
    parent_pid, death_signal, uid, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if int(uid) >= 0:
        _become(libc, int(uid))
    if sys.platform == "linux":
        # Last, because a change of user clears it.
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != int(parent_pid):
            sys.exit("the parent ended before its child began")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
