"""Generation on the nodes of a cluster, each with this program's own engine; the vocabulary is here."""
