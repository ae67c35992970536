"""Keys of metadata that this program writes into model files, and reads again."""

MERGE_SOURCES = "cerebrum.merge.sources"  # names of the models of a merge, a line each
MERGE_FORMAT = "cerebrum.format"  # the prompt format of a merge
CONVERTED = "cerebrum.convert."  # before the keys of what the weights of a conversion are
