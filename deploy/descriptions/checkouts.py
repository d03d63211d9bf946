"""Local checkouts of public repositories: texts of files at a commit, and expanded xacro files."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
from pathlib import Path

from deploy.descriptions.robots import Description

#: What a xacro file may include; meshes are not needed to read limits.
_TEXTS = (".xacro", ".urdf", ".xml", ".yaml", ".yml", ".json", ".gazebo", ".transmission")


class MissingSource(Exception):
    """A file that a card is made from is not there; the message says what to clone where."""


class Checkouts:
    """`folder` has `owner/name`, a git repository with or without a work tree, or `owner/name@commit`, plain files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trees = tempfile.TemporaryDirectory(prefix="descriptions-")
        self._exported: dict[str, Path] = {}

    def close(self) -> None:
        self._trees.cleanup()

    def commit(self, repository: str) -> str:
        """The commit whose files are read, 40 hex digits."""
        plain = self._plain(repository)
        if plain is not None:
            return plain.name.partition("@")[2]
        return self._git(repository, "rev-parse", "HEAD").decode().strip()

    def text(self, repository: str, path: str) -> str:
        """A file's text. Raises MissingSource."""
        plain = self._plain(repository)
        if plain is not None:
            return (plain / path).read_text(encoding="utf-8")
        return self._git(repository, "show", f"HEAD:{path}").decode("utf-8")

    def expanded(self, description: Description) -> str:
        """The URDF that a description's xacro file becomes. Raises MissingSource, or ValueError where it does not."""
        try:
            from xacrodoc import XacroDoc, packages
        except ModuleNotFoundError as error:
            raise MissingSource("xacro files are expanded by xacrodoc: pip install xacrodoc") from error
        trees = [self._export(name) for name in (description.repository, *description.others)]
        for tree in trees:
            for included, actual in description.renamed.items():
                if (tree / actual).is_file():
                    (tree / included).write_bytes((tree / actual).read_bytes())
        packages.look_in([str(tree) for tree in trees])
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                if description.assembly:
                    document = XacroDoc.from_string(description.assembly)
                else:
                    document = XacroDoc.from_file(str(trees[0] / description.path), subargs=description.arguments)
                return str(document.to_urdf_string())
            except Exception as error:  # xacro raises whatever an expression of the file raises
                raise ValueError(f"{description.path} does not expand: {error}") from error

    def _plain(self, repository: str) -> Path | None:
        owner, _, name = repository.partition("/")
        return next(iter(sorted((self._folder / owner).glob(f"{name}@*"))), None)

    def _git(self, repository: str, *arguments: str, stdin: bytes = b"") -> bytes:
        path = self._folder / repository
        if not path.exists():
            raise MissingSource(f"nothing at {path}: git clone https://github.com/{repository} there")
        done = subprocess.run(["git", "-C", str(path), *arguments], input=stdin, capture_output=True, check=False)
        if done.returncode:
            raise MissingSource(f"{repository}: git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def _export(self, repository: str) -> Path:
        """The repository's text files as a tree: a package is found by its package.xml."""
        if repository not in self._exported:
            tree = Path(self._trees.name) / repository.replace("/", "+")
            for name in self._git(repository, "ls-tree", "-r", "--name-only", "-z", "HEAD").decode().split("\0"):
                if name.endswith(_TEXTS):
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(MissingSource):  # a file that the clone left out, such as a large scene
                        (tree / name).write_bytes(self._git(repository, "show", f"HEAD:{name}"))
            self._exported[repository] = tree
        return self._exported[repository]
