"""Controls of a reply that depend on its format: when it has to conclude, and how long it may reason."""
