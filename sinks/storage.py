"""Where files come to rest: an S3 bucket or a local folder, with the same meaning.

A file appears whole or not at all, and never replaces another: that is what the Parquet sink's exactly-once
rests on.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from runtime.errors import Unavailable, VlastreamError
from runtime.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_CONNECT_TIMEOUT_S = 3
_READ_TIMEOUT_S = 20
#: Folder inside the root where files lie until they are whole; readers of Parquet datasets pass it over.
_UNFINISHED = ".unfinished"


class AlreadyExists(VlastreamError):
    """There is a file of this name; it was left as it is."""


class NotFound(VlastreamError):
    """There is no file of this name."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    key: str
    size_bytes: int


class Storage(Protocol):
    """Keys are relative, with `/` between folders. Every method raises Unavailable while the server is away."""

    def ping(self) -> None:
        """Return if files can be written; makes the bucket or the folder if it is missing."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write a new file. Raises AlreadyExists, also where two do it at once: one of them wins."""
        ...

    def replace(self, key: str, data: bytes) -> None:
        """Put other content under a key: whole or not at all. For erasures; a sink creates."""
        ...

    def delete(self, key: str) -> None:
        """Take a file away; one that is not there is no error."""
        ...

    def read(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on. Raises NotFound."""
        ...

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """Files whose keys begin with `prefix`, in the order of their keys."""
        ...

    def folders(self, parent: str) -> list[str]:
        """Names of the folders right below `parent`, sorted; none if it does not exist."""
        ...


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name. Does no I/O."""
    if not settings.enable_s3_storage:
        return FolderStorage(settings.data_dir / "lake")
    return S3Storage(build_s3_client(settings), settings.s3_bucket)


def build_s3_client(settings: Settings) -> S3Client:
    """An S3 client that fails fast: the sink's loop does the retrying. Without keys, AWS's own chain finds some."""
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint or None,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key.get_secret_value() or None,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value() or None,
        verify=settings.s3_ca_bundle or None,
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            # Other servers than AWS rarely have a host name for each bucket.
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
            # ... and rarely know the checksums that AWS's clients send unasked.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


class S3Storage:
    """A bucket of AWS S3 or of a server that speaks its protocol, conditional writes included."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def ping(self) -> None:
        with _s3_errors():
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                self._client.create_bucket(Bucket=self._bucket)

    def create(self, key: str, data: bytes) -> None:
        with _s3_errors():
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if _status(error) == 412:
                    raise AlreadyExists(f"{key} is in the bucket already") from error
                raise

    def replace(self, key: str, data: bytes) -> None:
        with _s3_errors():
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data)

    def delete(self, key: str) -> None:
        with _s3_errors():
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def read(self, key: str, start: int, length: int) -> bytes:
        with _s3_errors():
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=key, Range=f"bytes={start}-{start + length - 1}"
                )
                return answer["Body"].read()
            except ClientError as error:
                if _status(error) == 416:
                    return b""
                if _status(error) == 404:
                    raise NotFound(f"{key} is not in the bucket") from error
                raise

    def files(self, prefix: str) -> Iterator[StoredFile]:
        with _s3_errors():
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    # Some servers list a name for a moment before its content is there; none of our files is empty.
                    if item["Size"]:
                        yield StoredFile(item["Key"], item["Size"])

    def folders(self, parent: str) -> list[str]:
        prefix = f"{parent}/"
        pages = self._client.get_paginator("list_objects_v2")
        with _s3_errors():
            return sorted(
                found["Prefix"].removeprefix(prefix).rstrip("/")
                for page in pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/")
                for found in page.get("CommonPrefixes", [])
            )


class FolderStorage:
    """A folder of a local file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def ping(self) -> None:
        with _file_errors():
            (self._root / _UNFINISHED).mkdir(parents=True, exist_ok=True)

    def create(self, key: str, data: bytes) -> None:
        target = self._root / key
        with _file_errors():
            self.ping()
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._root / _UNFINISHED)
            unfinished = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                # A link fails where the name is taken, and the file is whole by now.
                target.hardlink_to(unfinished)
                _sync_folder(target.parent)
            except FileExistsError as error:
                raise AlreadyExists(f"{key} exists already") from error
            finally:
                unfinished.unlink()

    def replace(self, key: str, data: bytes) -> None:
        target = self._root / key
        with _file_errors():
            self.ping()
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._root / _UNFINISHED)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
            _sync_folder(target.parent)

    def delete(self, key: str) -> None:
        with _file_errors():
            (self._root / key).unlink(missing_ok=True)

    def read(self, key: str, start: int, length: int) -> bytes:
        with _file_errors():
            try:
                with (self._root / key).open("rb") as file:
                    file.seek(start)
                    return file.read(length)
            except FileNotFoundError as error:
                raise NotFound(f"{key} does not exist") from error

    def files(self, prefix: str) -> Iterator[StoredFile]:
        # As in S3 the prefix may end in the middle of a name.
        folder = self._root / prefix.rpartition("/")[0]
        with _file_errors():
            files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        for key, path in sorted((path.relative_to(self._root).as_posix(), path) for path in files):
            if key.startswith(prefix) and not key.startswith(f"{_UNFINISHED}/"):
                yield StoredFile(key, path.stat().st_size)

    def folders(self, parent: str) -> list[str]:
        with _file_errors():
            folder = self._root / parent
            return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


class StoredReader(io.RawIOBase):
    """A stored file as a file object that fetches only what is read. For Parquet's footers and columns."""

    def __init__(self, storage: Storage, file: StoredFile) -> None:
        self._storage = storage
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._file.size_bytes - self._position)
        if wanted <= 0:
            return 0
        data = self._storage.read(self._file.key, self._position, wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _sync_folder(folder: Path) -> None:
    """After this a new name in the folder survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _s3_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        raise Unavailable(f"S3 refuses: {details.get('Code')} {details.get('Message', '')}".strip()) from error
    except BotoCoreError as error:
        raise Unavailable(f"S3 does not answer: {error}") from error


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the lake folder cannot be used: {error.strerror}") from error
