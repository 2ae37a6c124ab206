"""Write the rendered Kubernetes overlays to a folder: python scripts/render.py build."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OVERLAYS = ROOT / "k8s" / "overlays"


def renderer() -> list[str]:
    """The kustomize command of this machine; ends the process with a message when there is none."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    sys.exit("rendering needs kubectl or kustomize on PATH")


def render(overlay: Path) -> str:
    """The manifests of one overlay as YAML text."""
    return subprocess.run([*renderer(), str(overlay)], check=True, capture_output=True, text=True).stdout


def main(out: Path) -> None:
    """Render every overlay."""
    out.mkdir(parents=True, exist_ok=True)
    for overlay in sorted(path.parent for path in OVERLAYS.glob("*/kustomization.yaml")):
        target = out / f"{overlay.name}.yaml"
        target.write_text(render(overlay))
        print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build"))
