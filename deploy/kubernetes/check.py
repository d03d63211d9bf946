"""Validates the manifests: Kubernetes' own kinds against its published schemas, those of KEDA, Strimzi and the
Prometheus operator against their CustomResourceDefinitions.

`python -m deploy.kubernetes.check --crds FOLDER`. The definitions are not kept here. Each project publishes them as
YAML with every release: KEDA as `keda-<version>-crds.yaml`, Strimzi as `strimzi-crds-<version>.yaml`, the Prometheus
operator in `bundle.yaml`. Put them into one folder; without it those kinds are only counted.

Where `kubectl` is installed the overlays are built by its kustomize and what comes out is validated, else their files.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import yaml

from deploy.kubernetes.installation import FOLDER, overlays

Document = dict[str, Any]
#: (apiVersion, kind) -> JSON schema.
Schemas = dict[tuple[str, str], dict[str, Any]]
#: Kinds of others, by the end of their group's name.
_CUSTOM_GROUPS = ("keda.sh", "strimzi.io", "coreos.com")
#: The one in C is some ten times as fast, which definitions of a megabyte make worth while.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KUBERNETES_VERSION = kubernetes_validate.latest_version()


def documents_of(file: Path) -> list[Document]:
    text = file.read_text(encoding="utf-8")
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]


def kustomization(folder: Path) -> Document:
    [document] = documents_of(folder / "kustomization.yaml")
    return document


def resources(folder: Path) -> Iterator[Document]:
    """Every resource that a kustomization names, as its file has it: neither merged nor patched.

    Raises FileNotFoundError for one that is not there.
    """
    for name in kustomization(folder)["resources"]:
        path = folder / name
        if path.is_dir():
            yield from resources(path)
        else:
            yield from documents_of(path)


def built(folder: Path) -> list[Document]:
    """What `kubectl kustomize` makes of an overlay. Raises CalledProcessError, which has what it complains of."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return [document for document in yaml.load_all(done.stdout, Loader=_LOADER) if document]


def is_custom(document: Document) -> bool:
    group, _, version = document["apiVersion"].rpartition("/")
    return bool(version) and group.endswith(_CUSTOM_GROUPS)


def core_fault(document: Document) -> str:
    """What Kubernetes' schema has against it, unknown fields included; empty: nothing."""
    try:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return f"{named(document)}: {error}"
    return ""


def custom_fault(document: Document, schemas: Schemas) -> str:
    """What its definition has against it; a kind without one is a fault as well."""
    schema = schemas.get((document["apiVersion"], document["kind"]))
    if schema is None:
        return f"{named(document)}: no definition of {document['apiVersion']}"
    errors = jsonschema.Draft4Validator(schema).iter_errors(document)
    found = "; ".join(f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors)
    return f"{named(document)}: {found}" if found else ""


def load_schemas(folder: Path) -> Schemas:
    """The schemas of every CustomResourceDefinition in the YAML files below a folder."""
    found: Schemas = {}
    for file in sorted(folder.rglob("*.yaml")):
        for document in documents_of(file):
            if document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                schema = _closed(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
                schema["properties"] |= {name: {} for name in ("apiVersion", "kind", "metadata")}
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def _closed(schema: Any) -> Any:
    """The same schema, in which what is not named is an error: Kubernetes would drop it unseen."""
    if isinstance(schema, dict):
        if schema.pop("x-kubernetes-int-or-string", False):
            schema.pop("type", None)
            schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        if isinstance(schema.get("properties"), dict) and not open_ended:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _closed(value)
    elif isinstance(schema, list):
        for value in schema:
            _closed(value)
    return schema


def named(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def faults(documents: Iterable[Document], schemas: Schemas | None) -> Iterator[str]:
    """One line for each document that does not fit. schemas: None leaves the kinds of others out."""
    for document in documents:
        if not is_custom(document):
            fault = core_fault(document)
        else:
            fault = custom_fault(document, schemas) if schemas is not None else ""
        if fault:
            yield fault


@click.command()
@click.option("--crds", type=click.Path(exists=True, file_okay=False, path_type=Path), help="folder of definitions")
def main(crds: Path | None) -> None:
    """Validate base and overlays."""
    schemas = load_schemas(crds) if crds else None
    builds = shutil.which("kubectl") is not None
    found = 0
    for overlay in overlays():
        documents = built(overlay) if builds else list(resources(overlay))
        custom = sum(map(is_custom, documents))
        for fault in faults(documents, schemas):
            found += 1
            click.echo(fault, err=True)
        how = "built by kubectl kustomize" if builds else "as their files have them"
        checked = "against their definitions" if schemas else "not validated: give --crds"
        click.echo(
            f"{overlay.relative_to(FOLDER)}: {len(documents)} resources, {how}; {len(documents) - custom} against "
            f"Kubernetes {KUBERNETES_VERSION}, {custom} of KEDA, Strimzi and the Prometheus operator {checked}"
        )
    click.echo(f"{found} faults")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
