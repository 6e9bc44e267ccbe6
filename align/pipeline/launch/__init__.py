"""Scripts and manifests with which a cluster runs `align run`."""
