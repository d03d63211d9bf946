"""Manifests for Kubernetes: base/ is every installation's, overlays/ hold what follows from the numbers of one."""
