"""Join tokens of the cluster: which are valid, which role they admit, new ones. Pure but for the fresh secrets."""

from __future__ import annotations

import hmac

import msgspec

from covey.entropy import token_secret
from covey.errors import Unauthorized
from covey.model.objects import Cluster
from covey.tls import Token, ca_digest, parse_token

ROLES = ("worker", "manager")


def fresh_secrets() -> dict[str, str]:
    """A secret for each role."""
    return {role: token_secret() for role in ROLES}


def rotate(cluster: Cluster, roles: tuple[str, ...]) -> Cluster:
    """``cluster`` with new secrets for ``roles``: the tokens given out before admit nobody any more."""
    fresh = {role: token_secret() for role in roles}
    return msgspec.structs.replace(cluster, tokens={**cluster.tokens, **fresh})


def token_of(cluster: Cluster, role: str) -> str:
    """The join token that admits nodes as ``role``."""
    return str(Token(ca_digest(cluster.ca_certificate), cluster.tokens[role]))


def admitted_role(cluster: Cluster, text: str) -> str:
    """The role that the token ``text`` admits as. Every comparison takes the same time whatever is wrong.

    Raises InvalidArgument for what is no token, Unauthorized for one that admits nobody.
    """
    token = parse_token(text)
    role = ""
    for candidate in ROLES:
        if hmac.compare_digest(token.secret, cluster.tokens.get(candidate, "")):
            role = candidate
    same_ca = hmac.compare_digest(token.digest, ca_digest(cluster.ca_certificate))
    if not role or not same_ca:
        raise Unauthorized("a valid join token is necessary to join this cluster: see `cluster join-token worker`")
    return role
