"""The command line, `muva VERB`: one verb a file, in the order in which people use them."""
