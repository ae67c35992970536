"""Programs that build what the package contains: wheels, the catalog, fixtures, and `nano`."""
