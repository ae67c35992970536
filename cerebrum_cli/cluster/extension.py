"""What answers rows on a Ray cluster."""

from cerebrum_cli.cli import Extension

EXTENSION = Extension(distribute="cerebrum_cli.cluster.distribution:distribute")
