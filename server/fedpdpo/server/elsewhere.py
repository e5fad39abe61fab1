"""Payloads on another file system: an object store, or whatever else fsspec reaches.

An object is named by what it is and by its digest, `adapters/version-00003.9f86d081884c7d65.
safetensors`, so it is never written twice with other bytes, not even by a server that was given up
and goes on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import fsspec

from fedpdpo.common.errors import BadSettings, BadState, FedPDPOError, StorageAway
from fedpdpo.common.files import sha256_of, whole_file

_DIGITS = 16


class Elsewhere:
    """A folder by its fsspec URL. Raises BadSettings where no installed library reaches it.

    Its functions, and this, raise StorageAway while it does not answer or refuses. `url` is for
    people: it is without a user's name and password, and so are the messages.
    """

    def __init__(self, url: str) -> None:
        user, self.url = _user_of(url)
        password = user.partition(":")[2]
        self._secrets = [one for one in (user, password, unquote(password)) if one]
        try:
            with self._reached(but=(ImportError, ValueError)):
                self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise BadSettings(
                f"--state-dir {self.url} cannot be used: {self._without_secret(error)} "
                "(s3:// needs this package's extra [s3])"
            ) from error
        self._root = PurePosixPath(root)

    def put(self, path: Path, name: PurePosixPath, sha256: bytes) -> None:
        """Copy a file there under a name, durably when this returns."""
        with self._reached():
            self._files.makedirs(str(self._root / name.parent), exist_ok=True)
            self._files.put_file(str(path), str(self._place(name, sha256)))

    def get(self, name: PurePosixPath, path: Path, *, num_bytes: int, sha256: bytes) -> None:
        """Copy a file from there to `path`. Raises BadState where it lacks or is another."""
        place = str(self._place(name, sha256))
        with self._reached(), whole_file(path) as partial:
            try:
                size = self._files.size(place)
            except FileNotFoundError:
                raise BadState(f"{self.url} lacks {name}; give the run's own --state-dir") from None
            if size == num_bytes:
                self._files.get_file(place, str(partial))
            if size != num_bytes or sha256_of(partial) != sha256:
                raise BadState(f"{name} in {self.url} is damaged; restore it from a backup")

    def remove_folders(self, folder: str, useless: Callable[[str], bool]) -> None:
        """Remove those folders of a folder whose names are useless."""
        with self._reached():
            place = str(self._root / folder)
            for found in self._files.ls(place, detail=False) if self._files.exists(place) else ():
                if useless(PurePosixPath(found).name):
                    self._files.rm(found, recursive=True)

    def holds(self, folder: str) -> bool:
        """Whether there is anything in a folder."""
        with self._reached():
            return bool(self._files.find(str(self._root / folder), maxdepth=1))

    def _place(self, name: PurePosixPath, sha256: bytes) -> PurePosixPath:
        return self._root / name.with_name(f"{name.stem}.{sha256.hex()[:_DIGITS]}{name.suffix}")

    @contextmanager
    def _reached(self, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each library has its own
            if isinstance(error, (FedPDPOError, *but)):
                raise
            told = " ".join(self._without_secret(error).split()) or type(error).__name__
            raise StorageAway(f"{self.url} does not answer: {told}") from error

    def _without_secret(self, error: Exception) -> str:
        told = str(error)
        for secret in self._secrets:
            told = told.replace(secret, "***")
        return told


def _user_of(url: str) -> tuple[str, str]:
    """Who is named before a URL's host, with a password, and the URL without."""
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    return user, f"{scheme}{mark}{host}{slash}{path}" if at else url
