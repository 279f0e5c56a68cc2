"""What the libraries say when object storage cannot be used, in words that help."""

from __future__ import annotations

import re

from vlltr_index.errors import WorkspaceError

__all__ = ["NO_BUCKET", "explain", "storage_error"]

NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified (?:bucket|container) does not exist", re.I)

_OURS = re.compile(
    r"Generic \w+ error|store: \"\w+\"|HTTP error|error sending request|dispatch failure", re.I
)
_PREFIX = re.compile(r"\AGeneric \w+ error: ")
_NO_HTTP = re.compile(r"builder error|BadScheme", re.I)
_NO_KEY = re.compile(
    r"169\.254\.1|latest/api/token|computeMetadata|must be specified|credential|Missing \w*Key", re.I
)
_REFUSED = re.compile(
    r"\b40[13]\b|Forbidden|AccessDenied|PermissionDenied|Unauthenticated|Unauthorized"
    r"|SignatureDoesNotMatch|InvalidAccessKeyId|AuthenticationFailed",
    re.I,
)
_REGION = re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|\b30[17]\b", re.I)
_SHOWN = 300  # characters of what a library says

_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION",
    "gs": "GOOGLE_SERVICE_ACCOUNT (the key's file)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}


def storage_error(address: str, error: Exception) -> WorkspaceError | None:
    """What to say where a library failed to use object storage; None for other errors, and for local folders.

    Args:
        address: The URI that was used.
        error: What the library raised.
    """
    said = str(error)
    return explain(address, said) if "://" in address and _OURS.search(said) else None


def explain(address: str, said: str) -> WorkspaceError:
    """The error for what a library said when it failed to use object storage."""
    short = _PREFIX.sub("", said.partition("\n")[0])[:_SHOWN]
    keys = _KEYS.get(address.partition("://")[0], "the credentials")
    if NO_BUCKET.search(said):
        return WorkspaceError(
            f"there is no bucket of the name in {address}",
            "Make it with the storage's own tools, or mend the address.",
        )
    if _NO_HTTP.search(said):
        return WorkspaceError(
            f"{address}: the endpoint speaks http, without encryption, which has to be allowed: {short}",
            "For storage of your own: export AWS_ALLOW_HTTP=true",
        )
    if _NO_KEY.search(said):
        return WorkspaceError(f"no credentials for {address}: {short}", f"Set {keys} in the environment.")
    if _REFUSED.search(said):
        return WorkspaceError(
            f"the storage does not allow this at {address}: {short}",
            f"Look at {keys}: they must be allowed to list, read, write and delete there.",
        )
    if _REGION.search(said):
        return WorkspaceError(f"{address} is in another region: {short}", "Set AWS_REGION to the bucket's.")
    return WorkspaceError(
        f"the storage of {address} cannot be used: {short}",
        "Look at the network, the address and the endpoint (AWS_ENDPOINT), then run the same command again.",
    )
