"""An S3 server over a folder: S3Proxy."""

from __future__ import annotations

import http.client
import secrets
import ssl
from dataclasses import dataclass

from runtime.stack.component import Command, Component, Say
from runtime.stack.jars import jars, java
from runtime.stack.layout import LOOPBACK, Layout
from runtime.stack.security import StackSecurity

COORDINATES = "org.gaul:s3proxy:4.1.0:jar-with-dependencies"


@dataclass(frozen=True)
class S3Settings:
    endpoint: str
    bucket: str
    access_key: str
    secret_key: str


class S3(Component):
    """Its buckets are folders, so the bucket is there before the first request."""

    name = role = "s3"

    def __init__(
        self, layout: Layout, bucket: str = "vla-training-data", security: StackSecurity | None = None
    ) -> None:
        self._port = layout.port("s3")
        self._data = layout.data("s3")
        self._properties_file = layout.data("s3.properties")
        self._jar = ""
        self._security = security
        self.settings = S3Settings(
            endpoint=f"{'http' if security is None else 'https'}://{LOOPBACK}:{self._port}",
            bucket=bucket,
            access_key=layout.secret("s3_access_key", lambda: f"vla{secrets.token_hex(8)}"),
            secret_key=layout.secret("s3_secret_key"),
        )

    def prepare(self, say: Say) -> None:
        self._jar = str(jars(COORDINATES, say, alone=True)[0])
        self._data.mkdir(mode=0o700, exist_ok=True)
        (self._data / self.settings.bucket).mkdir(exist_ok=True)
        self._properties_file.touch(mode=0o600)
        properties = {
            **self._endpoint(),
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": self.settings.access_key,
            "s3proxy.credential": self.settings.secret_key,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(self._data),
            "jclouds.identity": "unused",
            "jclouds.credential": "unused",
        }
        self._properties_file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def _endpoint(self) -> dict[str, str]:
        if self._security is None:
            return {"s3proxy.endpoint": self.settings.endpoint}
        self._security.prepare()
        return {
            "s3proxy.secure-endpoint": self.settings.endpoint,
            "s3proxy.keystore-path": str(self._security.certificates.pkcs12),
            "s3proxy.keystore-password": self._security.keystore_password,
        }

    def command(self) -> Command:
        options = ["-Xmx192m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-DLOG_LEVEL=warn"]
        return Command([java(), *options, "-jar", self._jar, "--properties", str(self._properties_file)])

    def is_ready(self) -> bool:
        connection = self._connection()
        try:
            connection.request("GET", "/")  # unsigned: any answer will do
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._security is None:
            return http.client.HTTPConnection(LOOPBACK, self._port, timeout=1)
        context = ssl.create_default_context(cafile=str(self._security.certificates.ca))
        return http.client.HTTPSConnection(LOOPBACK, self._port, timeout=1, context=context)
