"""The options with which commands answer rows on a Ray cluster."""

from cerebrum_cli.cli import Extension

EXTENSION = Extension(row_options="cerebrum_cli.cluster.ray_options:RayOptions")
