"""Writes the versions of all that fedpdpo[client,postgres,s3] needs, as installed here and tested.

python deploy/pins.py > deploy/constraints.txt
pip install --constraint deploy/constraints.txt '.[client]'
"""

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def main() -> None:
    """Follow requirements from the package on, and print each once, sorted."""
    found: dict[str, str] = {}
    waiting = [Requirement("fedpdpo[client,postgres,s3]")]
    seen = set[str]()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        name = canonicalize_name(wanted.name)
        try:
            found[name] = version(name).partition("+")[0]
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        for text in needed:
            one = Requirement(text)
            extras = wanted.extras or {""}
            if one.marker is None or any(one.marker.evaluate({"extra": x}) for x in extras):
                waiting.append(one)
    del found["fedpdpo"]
    sys.stdout.writelines(f"{name}=={number}\n" for name, number in sorted(found.items()))


if __name__ == "__main__":
    main()
