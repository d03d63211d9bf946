"""Regenerates the Python of schemas/vla/v1/*.proto: `python -m schemas.generate`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path = ROOT) -> list[Path]:
    """Write messages and typed stubs below `out`; returns the files. Needs the `dev` extra."""
    protos = sorted((ROOT / "schemas" / "vla" / "v1").glob("*.proto"))
    # protoc finds the stub generator on PATH; it lies beside this interpreter.
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    subprocess.run([*command, *map(str, protos)], check=True, env=env, cwd=ROOT)
    return [out / p.relative_to(ROOT).with_name(p.stem + end) for p in protos for end in ("_pb2.py", "_pb2.pyi")]


if __name__ == "__main__":
    print("\n".join(str(path.relative_to(ROOT)) for path in generate()))
