"""A broker that asks who one is, and lets in what it was told to: TLS, SCRAM, client certificates, an authorizer."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not in its __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from lstmstream.dev import broker as single
from tests.transport.servers import Certificates

USER, PASSWORD = "daemon", "p4ss \\ word' #"
COMMON_NAME = "daemon-with-a-certificate"
LISTENERS = ("SASL_SSL", "SHORT", "OAUTH", "SSL")
REAUTH_MS = 4_000  # so long is a login at SHORT and OAUTH good for
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
# The broker believes what an unsigned token says of itself, and that it is not expired.
BEARER = (
    "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
    ' unsecuredLoginStringClaim_sub="broker";'
)


class Right(NamedTuple):
    """What one ACL allows."""

    kind: ResourceType
    name: str
    operation: AclOperation
    prefixed: bool = False

    def binding(self, principal: str) -> AclBinding:
        pattern = ResourcePatternType.PREFIXED if self.prefixed else ResourcePatternType.LITERAL
        return AclBinding(
            self.kind, self.name, pattern, f"User:{principal}", "*", self.operation, AclPermissionType.ALLOW
        )


class SecuredBroker:
    """Its addresses, and the certificates of its authority. Who comes to `plain` may do everything: the test itself."""

    def __init__(self, plain: str, addresses: Mapping[str, str], certificates: Certificates) -> None:
        """`addresses`: by listener."""
        self.plain = plain
        self.sasl, self.short, self.oauth, self.tls = (addresses[name] for name in LISTENERS)
        self.certificates = certificates
        self._admin = AdminClient({"bootstrap.servers": plain})

    def scram(self) -> dict[str, Any]:
        """`kafka` of a configuration, with user and password."""
        return self._sasl(self.sasl, "SCRAM-SHA-512", username=USER, password=PASSWORD)

    def short_scram(self, user: str) -> dict[str, Any]:
        """`kafka` of a configuration, whose password is asked for again every few seconds, and is not in it."""
        return self._sasl(self.short, "SCRAM-SHA-512", username=user)

    def bearer(self, **oauth: str) -> dict[str, Any]:
        """`kafka` of a configuration, with a token, which is asked for again every few seconds."""
        return self._sasl(self.oauth, "OAUTHBEARER", oauth=oauth)

    def _sasl(self, servers: str, mechanism: str, **options: Any) -> dict[str, Any]:
        security = {"protocol": "SASL_SSL", "mechanism": mechanism, "ca": str(self.certificates.root), **options}
        return {"bootstrap_servers": servers, "security": security}

    def mutual_tls(self) -> dict[str, Any]:
        """`kafka` of a configuration, with a client's certificate."""
        cert = self.certificates.certificate("client", common_name=COMMON_NAME)
        paths = {"ca": self.certificates.root, "cert": cert, "key": self.certificates.key("client")}
        return {
            "bootstrap_servers": self.tls,
            "security": {"protocol": "SSL", **{name: str(path) for name, path in paths.items()}},
        }

    def set_password(self, user: str = USER, password: str = PASSWORD) -> None:
        """For `scram`. A user that is not there yet is made."""
        new = UserScramCredentialUpsertion(
            user, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), password.encode()
        )
        for future in self._admin.alter_user_scram_credentials([new], request_timeout=60).values():
            future.result()

    def close(self) -> None:
        """Before the broker stops, since a client would look for it again and again."""
        del self._admin

    @contextmanager
    def allowing(self, rights: Collection[Right], principal: str) -> Iterator[None]:
        """Those, and nothing else, for as long as it is entered."""
        bindings = [right.binding(principal) for right in rights]
        for future in self._admin.create_acls(bindings, request_timeout=60).values():
            future.result()
        try:
            yield
        finally:
            filters = [_as_filter(binding) for binding in bindings]
            for removed in self._admin.delete_acls(filters, request_timeout=60).values():
                removed.result()


def unsigned_token(subject: str, *, lifetime_s: float) -> str:
    """A JWT that is valid from now on, for so long."""
    now_s = time.time()
    claims = {"sub": subject, "iat": now_s - 1, "exp": now_s + lifetime_s}
    parts = (urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=").decode() for part in ({"alg": "none"}, claims))
    return ".".join((*parts, ""))


def _as_filter(binding: AclBinding) -> Any:
    return AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )


@contextmanager
def secured_broker(folder: Path) -> Iterator[SecuredBroker]:
    """Started here, stopped afterwards."""
    certificates = Certificates(folder)
    addresses: dict[str, str] = {}
    for name in LISTENERS:
        while (at := f"127.0.0.1:{single._choose_port(0, None)}") in addresses.values():
            pass
        addresses[name] = at
    store = folder / "server-with-key.pem"
    server = certificates.certificate("server")
    store.write_bytes(certificates.key("server").read_bytes() + server.read_bytes())
    of_one_node = single._server_properties

    def properties(data: Path, port: int, controller_port: int) -> str:
        """Of a name that is there twice, the last counts."""
        listeners = ",".join(f"{name}://{at}" for name, at in {"PLAINTEXT": f"127.0.0.1:{port}", **addresses}.items())
        return f"""\
{of_one_node(data, port, controller_port)}
listeners={listeners},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={listeners}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SHORT:SASL_SSL,OAUTH:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={store}
ssl.truststore.type=PEM
ssl.truststore.location={certificates.root}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={SCRAM}
listener.name.short.scram-sha-512.sasl.jaas.config={SCRAM}
listener.name.short.scram-sha-512.connections.max.reauth.ms={REAUTH_MS}
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config={BEARER}
listener.name.oauth.oauthbearer.connections.max.reauth.ms={REAUTH_MS}
ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""

    broker = single.DevBroker(folder / "broker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "_server_properties", properties)
        plain = broker.up(port=0)
    try:
        made = SecuredBroker(plain, addresses, certificates)
        made.set_password()
        yield made
        made.close()
    finally:
        broker.down(wipe=True)
