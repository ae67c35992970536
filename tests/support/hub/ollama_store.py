"""Models in a directory laid out as Ollama's store."""

import hashlib
import json
from pathlib import Path


def put_layer(store: Path, name: str, model: Path, *others: dict[str, object]) -> Path:
    """Put a model into a store, under a name such as `registry.ollama.ai/library/small/latest`; returns its blob.

    Its manifest has `others` as further layers.
    """
    data = model.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blob, manifest = store / "blobs" / f"sha256-{digest}", store / "manifests" / name
    for path in (blob, manifest):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 5},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(data)},
        *others,
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
    return blob
