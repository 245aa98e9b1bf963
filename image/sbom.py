"""Write the image's bill of materials: CycloneDX's of the Python packages, with what is missing there.

    sbom.py PYTHON.json ROOT REPORT.json... > sbom.cdx.json

That is the hash of the file that each was installed from, which pip's reports have, and Debian's packages, from dpkg's
status in the image's root. What was built here, the library, is no package of an index.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def main() -> None:
    bom, *reports = (json.loads(Path(file).read_text()) for file in (sys.argv[1], *sys.argv[3:]))
    root = Path(sys.argv[2])
    installed = [wheel for report in reports for wheel in report["install"]]
    wheels = {
        f"{wheel['metadata']['name']}=={wheel['metadata']['version']}": wheel["download_info"] for wheel in installed
    }
    for component in bom["components"]:
        wheel = wheels[component["bom-ref"]]
        component["hashes"] = [{"alg": "SHA-256", "content": wheel["archive_info"]["hashes"]["sha256"]}]
        if wheel["url"].startswith("file:"):
            component["purl"] = f"pkg:generic/{component['name']}@{component['version']}"
    release = fields((root / "etc/os-release").read_text(), "=")
    stanzas = (root / "var/lib/dpkg/status").read_text().strip().split("\n\n")
    bom["components"] += [debian(fields(stanza, ": "), release["VERSION_ID"].strip('"')) for stanza in stanzas]
    print(json.dumps(bom, indent=1, sort_keys=True))


def fields(text: str, separator: str) -> dict[str, str]:
    """Return the fields of a text with one a line; what goes on in a further line is left out."""
    return dict(re.findall(rf"^(\w\S*?){separator}(.*)$", text, re.MULTILINE))


def debian(package: dict[str, str], release: str) -> dict[str, Any]:
    """Return the component of one of Debian's packages."""
    name, version, architecture = package["Package"], package["Version"], package["Architecture"]
    purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}&distro=debian-{release}"
    return {
        "bom-ref": purl,
        "type": "library",
        "name": name,
        "version": version,
        "description": package["Description"],
        "purl": purl,
    }


if __name__ == "__main__":
    main()
